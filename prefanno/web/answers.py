"""The schemas of answers, for the OpenAPI document; the contract tests hold the real answers to them.

An answer may grow fields; these never go away or change their type.
"""

from marshmallow import INCLUDE, Schema, fields

from prefanno.web.schemas import ConfigSchema, TurnSchema


class Answer(Schema):
    """Fields may be added to any answer."""

    class Meta:
        """An explicit setting, which OpenAPI shows as `additionalProperties: true`."""

        unknown = INCLUDE


class Failure(Answer):
    """Every error; `errors` where fields are at fault, `incident` where prefanno itself is."""

    detail = fields.String(required=True)
    errors = fields.Dict(keys=fields.String(), values=fields.List(fields.String()))
    incident = fields.String()


class Done(Answer):
    """A command succeeded."""

    status = fields.String(required=True, metadata={"enum": ["success"]})
    message = fields.String(required=True)


class Health(Answer):
    """How the server is; 200 as soon as it accepts connections."""

    status = fields.String(required=True, metadata={"enum": ["ok", "degraded"]})
    reason = fields.String(allow_none=True)
    version = fields.String(required=True)
    database = fields.String(required=True)
    engine = fields.String(required=True)
    training = fields.String(required=True)


class LoadedData(Answer):
    """What was loaded."""

    adapter_path = fields.String(required=True, allow_none=True)
    character = fields.String(required=True)
    config = fields.Nested(ConfigSchema, required=True)


class Loaded(Done):
    """The answer of a load."""

    data = fields.Nested(LoadedData, required=True)


class Gpu(Answer):
    """One GPU's memory, in gigabytes."""

    name = fields.String(required=True)
    memory_allocated_gb = fields.Float(required=True)
    memory_reserved_gb = fields.Float(required=True)


class ModelStatusData(Answer):
    """The engine's state."""

    model_loaded = fields.Boolean(required=True)
    model_loading = fields.Boolean(required=True)
    config = fields.Nested(ConfigSchema, required=True, allow_none=True)
    gpu_info = fields.Dict(keys=fields.String(), values=fields.Nested(Gpu), required=True)
    base_model = fields.String(required=True)
    adapter = fields.String(required=True, allow_none=True)
    character = fields.String(required=True, allow_none=True)
    device = fields.String(required=True, allow_none=True)
    context_length = fields.Integer(required=True, allow_none=True)


class ModelStatus(Done):
    """`message` is loaded, loading or unloaded."""

    data = fields.Nested(ModelStatusData, required=True)


class Candidate(Answer):
    """One candidate; `thinking` is absent when thinking is disabled or hidden."""

    id = fields.Integer(required=True)
    thinking = fields.String()
    content = fields.String(required=True)


class Generated(Answer):
    """Exactly `num_responses` candidates."""

    responses = fields.List(fields.Nested(Candidate), required=True)
    generation_id = fields.String(required=True)
    seed = fields.Integer(required=True)
    conversation_id = fields.String(required=True, allow_none=True)


class AddedData(Answer):
    """The dataset after an add."""

    total = fields.Integer(required=True)
    file = fields.String(required=True)
    id = fields.Integer(required=True)


class Added(Done):
    """The answer of an add."""

    data = fields.Nested(AddedData, required=True)


class DatasetSize(Answer):
    """One dataset: the file it is exported to, and its size."""

    file = fields.String(required=True)
    count = fields.Integer(required=True)


class StatsData(Answer):
    """Both datasets."""

    preference = fields.Nested(DatasetSize, required=True)
    roleplay = fields.Nested(DatasetSize, required=True)


class Stats(Done):
    """The answer of stats."""

    data = fields.Nested(StatsData, required=True)


class Item(Answer):
    """One annotation."""

    id = fields.Integer(required=True)
    mode = fields.String(required=True)
    human_input = fields.String(required=True)
    chosen = fields.String(required=True)
    chosen_thinking = fields.String(required=True, allow_none=True)
    rejected = fields.String(required=True, allow_none=True)
    rejected_thinking = fields.String(required=True, allow_none=True)
    context = fields.List(fields.Nested(TurnSchema), required=True)
    created_at = fields.String(required=True)


class ItemsData(Answer):
    """The newest annotations and how many there are in all."""

    total = fields.Integer(required=True)
    items = fields.List(fields.Nested(Item), required=True)


class Items(Done):
    """The answer of list."""

    data = fields.Nested(ItemsData, required=True)


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


class LogLine(Answer):
    """One line of a run's log; `time` is local, in seconds."""

    time = fields.String(required=True)
    message = fields.String(required=True)


class LastRun(Answer):
    """The run under way or the last one; times are UTC."""

    id = fields.Integer(required=True)
    state = fields.String(required=True, metadata={"enum": ["running", "succeeded", "failed", "stopped"]})
    started = fields.String(required=True)
    ended = fields.String(required=True, allow_none=True)
    exit_code = fields.Integer(required=True, allow_none=True)
    reason = fields.String(required=True, allow_none=True)
    adapter = fields.String(required=True, allow_none=True)


class TrainStatusData(Answer):
    """The trainer's state and its last 50 lines."""

    running = fields.Boolean(required=True)
    log_count = fields.Integer(required=True)
    recent_logs = fields.List(fields.Nested(LogLine), required=True)
    last_run = fields.Nested(LastRun, required=True, allow_none=True)


class TrainStatus(Done):
    """`message` is running or idle."""

    data = fields.Nested(TrainStatusData, required=True)
