"""The schemas of answers about comparisons."""

from marshmallow import fields

from prefanno.arena.comparisons import VERDICTS
from prefanno.web.answers import Answer, Done
from prefanno.web.schemas import TurnSchema


class BegunData(Answer):
    """A comparison that is being answered from now on."""

    id = fields.Integer(required=True)
    character = fields.String(required=True)
    adapter = fields.String(required=True)
    against = fields.String(required=True)
    prompts = fields.Integer(required=True)


class Begun(Done):
    """The answer of a start."""

    data = fields.Nested(BegunData, required=True)


class Votes(Answer):
    """The votes for the adapter, for the other side, and for neither."""

    won = fields.Integer(required=True)
    lost = fields.Integer(required=True)
    tied = fields.Integer(required=True)


class AnsweringProgress(Answer):
    """How many rounds there are, how many both sides have answered, single replies, and prompts that were left out."""

    prompts = fields.Integer(required=True)
    answered = fields.Integer(required=True)
    replies = fields.Integer(required=True)
    left_out = fields.Integer(required=True)


class ComparisonData(Answer):
    """All of a comparison; times are UTC."""

    id = fields.Integer(required=True)
    character = fields.String(required=True)
    base_model = fields.String(required=True)
    adapter = fields.String(required=True)
    against = fields.String(required=True)
    seed = fields.Integer(required=True)
    state = fields.String(required=True, metadata={"enum": ["answering", "open", "failed"]})
    reason = fields.String(required=True, allow_none=True)
    progress = fields.Nested(AnsweringProgress, required=True)
    votes = fields.Nested(Votes, required=True)
    win_rate = fields.Float(required=True, allow_none=True)
    interval = fields.List(fields.Float(), required=True)
    level = fields.Float(required=True)
    verdict = fields.String(required=True, metadata={"enum": list(VERDICTS)})
    more_votes = fields.Integer(required=True, allow_none=True)
    promote = fields.Boolean(required=True)
    promoted = fields.Boolean(required=True)
    message = fields.String(required=True)
    created_at = fields.String(required=True)
    ended_at = fields.String(required=True, allow_none=True)


class OneComparison(Done):
    """One comparison; `message` says the verdict."""

    data = fields.Nested(ComparisonData, required=True)


class ComparisonsData(Answer):
    """A character's comparisons, the newest first."""

    character = fields.String(required=True)
    items = fields.List(fields.Nested(ComparisonData), required=True)


class Comparisons(Done):
    """The answer of a list."""

    data = fields.Nested(ComparisonsData, required=True)


class BlindReply(Answer):
    """What one side replied; `thinking` is absent where it has none, or thoughts are hidden."""

    content = fields.String(required=True)
    thinking = fields.String()


class NextRoundData(Answer):
    """A round to vote on; nothing in it tells which side is whose."""

    round = fields.Integer(required=True)
    message = fields.String(required=True)
    context = fields.List(fields.Nested(TurnSchema), required=True)
    left = fields.Nested(BlindReply, required=True)
    right = fields.Nested(BlindReply, required=True)
    remaining = fields.Integer(required=True)


class NextRound(Done):
    """The next round."""

    data = fields.Nested(NextRoundData, required=True)


class VotedData(Answer):
    """A vote: the id of the pair that it made, null of a tie; how many rounds can be voted on now."""

    id = fields.Integer(required=True, allow_none=True)
    round = fields.Integer(required=True)
    remaining = fields.Integer(required=True)
    promoted = fields.Boolean(required=True)


class Voted(Done):
    """The answer of a vote."""

    data = fields.Nested(VotedData, required=True)
