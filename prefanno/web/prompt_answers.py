"""The schemas of answers about the queue of prompts."""

from marshmallow import fields

from prefanno.db.prompts import STATES
from prefanno.web.annotation_answers import Changed
from prefanno.web.answers import Answer, Done, Generated
from prefanno.web.schemas import TurnSchema

__all__ = ["Changed", "NextPrompt", "PromptQueue", "QueuedUp"]


class PromptCounts(Answer):
    """How many of the character's prompts are in each state."""

    waiting = fields.Integer(required=True)
    ready = fields.Integer(required=True)
    taken = fields.Integer(required=True)
    failed = fields.Integer(required=True)


class QueuedUpData(Answer):
    """The new prompts, and how many were left out."""

    ids = fields.List(fields.Integer(), required=True)
    duplicates = fields.Integer(required=True)
    counts = fields.Nested(PromptCounts, required=True)


class QueuedUp(Done):
    """Prompts were queued up."""

    data = fields.Nested(QueuedUpData, required=True)


class AskedPrompt(Answer):
    """A message after earlier turns."""

    id = fields.Integer(required=True)
    message = fields.String(required=True)
    context = fields.List(fields.Nested(TurnSchema), required=True)


class QueuedPrompt(AskedPrompt):
    """All of a prompt; `decided` says whether a choice was made among its candidates."""

    state = fields.String(required=True, metadata={"enum": list(STATES)})
    reason = fields.String(required=True, allow_none=True)
    disagreement = fields.Float(required=True, allow_none=True)
    generation_id = fields.String(required=True, allow_none=True)
    decided = fields.Boolean(required=True)
    created_at = fields.String(required=True)


class PromptQueueData(Answer):
    """One page; `next` is null on the last."""

    items = fields.List(fields.Nested(QueuedPrompt), required=True)
    next = fields.Integer(required=True, allow_none=True)
    counts = fields.Nested(PromptCounts, required=True)


class PromptQueue(Done):
    """The queue."""

    data = fields.Nested(PromptQueueData, required=True)


class NextPromptData(Generated):
    """The prompt and its candidates."""

    prompt = fields.Nested(AskedPrompt, required=True)


class NextPrompt(Done):
    """The next prompt."""

    data = fields.Nested(NextPromptData, required=True)
