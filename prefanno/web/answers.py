"""The schemas of answers, for the OpenAPI document; the contract tests hold the real answers to them.

An answer may grow fields; these never go away or change their type.
"""

from marshmallow import INCLUDE, Schema, fields

from prefanno.generation.progress import PHASES
from prefanno.web.schemas import ConfigSchema, TurnSchema


class Answer(Schema):
    """Fields may be added to any answer."""

    class Meta:
        """An explicit setting, which OpenAPI shows as `additionalProperties: true`."""

        unknown = INCLUDE


class Failure(Answer):
    """Every error; `errors` where fields are at fault, `incident` where prefanno is, `error` for OpenAI's clients."""

    detail = fields.String(required=True)
    errors = fields.Dict(keys=fields.String(), values=fields.List(fields.String()))
    incident = fields.String()
    error = fields.Dict()


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
    trains = fields.Boolean(required=True)


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


class Queue(Answer):
    """Who waits for the engine: requests of clients, and those that are written ahead of time."""

    waiting = fields.Integer(required=True)
    writing = fields.Integer(required=True)
    ahead = fields.Integer(required=True)
    wait_s = fields.Float(required=True, allow_none=True)


class Progress(Answer):
    """How far a load is."""

    phase = fields.String(required=True, metadata={"enum": list(PHASES)})
    fraction = fields.Float(required=True, allow_none=True)
    elapsed_s = fields.Float(required=True)


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
    failure = fields.String(required=True, allow_none=True)
    queue = fields.Nested(Queue, required=True)
    progress = fields.Nested(Progress, required=True, allow_none=True)
    comparison = fields.Integer(required=True, allow_none=True)


class ModelStatus(Done):
    """`message` is loaded, loading, unloaded or failed."""

    data = fields.Nested(ModelStatusData, required=True)


class Candidate(Answer):
    """One candidate; `thinking` is absent when thinking is disabled or hidden."""

    id = fields.Integer(required=True)
    thinking = fields.String()
    content = fields.String(required=True)
    finish_reason = fields.String(required=True)
    tokens = fields.Integer(required=True)
    mean_logprob = fields.Float(required=True, allow_none=True)


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
