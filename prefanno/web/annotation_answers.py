"""The schemas of answers about choices, annotations and their history, characters and conversations."""

from marshmallow import fields

from prefanno.web.answers import Answer, Done, Item
from prefanno.web.schemas import TurnSchema


class ChosenData(Answer):
    """The annotation, what follows from it, how many its dataset has now, and whether it is another than before."""

    changed = fields.Integer(required=True)
    id = fields.Integer(required=True)
    pairs = fields.Integer(required=True)
    unpaired = fields.Integer(required=True)
    total = fields.Integer(required=True)


class Chosen(Done):
    """The answer of a choice."""

    data = fields.Nested(ChosenData, required=True)


class JudgedReply(Answer):
    """One of the replies that a choice was among; a null rank is "not judged"."""

    content = fields.String(required=True)
    thinking = fields.String(required=True, allow_none=True)
    rank = fields.Integer(required=True, allow_none=True)
    candidate = fields.Integer(required=True, allow_none=True)


class WholeAnnotation(Item):
    """All of an annotation; `chosen` is null where no reply was good."""

    chosen = fields.String(required=True, allow_none=True)
    character = fields.String(required=True)
    system_prompt = fields.String(required=True)
    verdict = fields.String(required=True)
    replies = fields.List(fields.Nested(JudgedReply), required=True)
    reasons = fields.List(fields.String(), required=True)
    note = fields.String(required=True, allow_none=True)
    annotator = fields.String(required=True, allow_none=True)
    adapter = fields.String(required=True, allow_none=True)
    generation_id = fields.String(required=True, allow_none=True)
    deleted = fields.Boolean(required=True)


class One(Done):
    """One annotation."""

    data = fields.Nested(WholeAnnotation, required=True)


class FoundData(Answer):
    """One page; `next` is null on the last."""

    items = fields.List(fields.Nested(WholeAnnotation), required=True)
    next = fields.Integer(required=True, allow_none=True)


class Found(Done):
    """The answer of a search."""

    data = fields.Nested(FoundData, required=True)


class ChangedData(Answer):
    """How many annotations were changed."""

    changed = fields.Integer(required=True)


class Changed(Done):
    """The answer of a bulk change."""

    data = fields.Nested(ChangedData, required=True)


class UndoneData(ChangedData):
    """Which step it was, whose and of what kind."""

    character = fields.String(required=True)
    step = fields.Integer(required=True)
    kind = fields.String(required=True)


class Undone(Done):
    """The answer of undo and redo."""

    data = fields.Nested(UndoneData, required=True)


class HappenedEvent(Answer):
    """The changed fields before and after."""

    step = fields.Integer(required=True)
    kind = fields.String(required=True)
    annotator = fields.String(required=True, allow_none=True)
    before = fields.Dict(required=True)
    after = fields.Dict(required=True)
    created_at = fields.String(required=True)


class HistoryData(Answer):
    """Oldest first."""

    events = fields.List(fields.Nested(HappenedEvent), required=True)


class History(Done):
    """What happened to an annotation."""

    data = fields.Nested(HistoryData, required=True)


class CharacterData(Answer):
    """A character, its persona, and how many annotations it has."""

    slug = fields.String(required=True)
    name = fields.String(required=True)
    system_prompt = fields.String(required=True)
    preference = fields.Integer(required=True)
    roleplay = fields.Integer(required=True)


class OneCharacter(Done):
    """One character."""

    data = fields.Nested(CharacterData, required=True)


class CharactersData(Answer):
    """All characters; `current` is the slug of the current one."""

    current = fields.String(required=True)
    items = fields.List(fields.Nested(CharacterData), required=True)


class Characters(Done):
    """All characters."""

    data = fields.Nested(CharactersData, required=True)


class ConversationItem(Answer):
    """A conversation by its first turn."""

    id = fields.String(required=True)
    message = fields.String(required=True)
    turns = fields.Integer(required=True)
    created_at = fields.String(required=True)


class ConversationsData(Answer):
    """One page; `next` is null on the last."""

    items = fields.List(fields.Nested(ConversationItem), required=True)
    next = fields.Integer(required=True, allow_none=True)


class Conversations(Done):
    """The newest conversations."""

    data = fields.Nested(ConversationsData, required=True)


class TurnChoice(Answer):
    """The choice at a turn."""

    id = fields.Integer(required=True)
    verdict = fields.String(required=True)
    chosen = fields.String(required=True, allow_none=True)


class TurnCandidate(Answer):
    """One candidate of a turn."""

    id = fields.Integer(required=True)
    thinking = fields.String(required=True, allow_none=True)
    content = fields.String(required=True)


class ConversationTurn(Answer):
    """A turn, the turn it goes on from, and the choice among its candidates, if there is one."""

    generation_id = fields.String(required=True)
    parent = fields.String(required=True, allow_none=True)
    message = fields.String(required=True)
    context = fields.List(fields.Nested(TurnSchema), required=True)
    candidates = fields.List(fields.Nested(TurnCandidate), required=True)
    choice = fields.Nested(TurnChoice, required=True, allow_none=True)
    created_at = fields.String(required=True)


class ConversationData(Answer):
    """All turns, oldest first."""

    turns = fields.List(fields.Nested(ConversationTurn), required=True)


class Conversation(Done):
    """One conversation."""

    data = fields.Nested(ConversationData, required=True)
