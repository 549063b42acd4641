"""The schemas that validate requests about training; the bounds are those of `training/methods.py`."""

from typing import Any

from marshmallow import ValidationError, fields, validate, validates_schema

from prefanno.training.config import HELD_OUT, LORA, MAX_LENGTH
from prefanno.training.methods import DATASETS, METHODS, Hyperparameter, conflict, fault
from prefanno.web.fields import REQUIRED, Number, QueryWhole, StrictSchema, Text, Truth, Whole, at_most, between, one_of
from prefanno.web.schemas import LIST, MAX_ID, MAX_SEED, CharacterSchema


def _field(one: Hyperparameter) -> fields.Field[Any]:
    kind: type[fields.Field[Any]] = {int: Whole, float: Number, str: Text}[type(one.default)]
    return kind(metadata={"description": one.source})


HyperparametersSchema = StrictSchema.from_dict(
    {name: _field(one) for method in METHODS.values() for name, one in method.hyperparameters.items()},
    name="HyperparametersSchema",
)


class StageSchema(StrictSchema):
    """One stage: a method, the dataset it learns from, and its hyperparameters; those left out have their defaults."""

    method = Text(required=True, validate=one_of(*METHODS))
    dataset = Text(validate=one_of(*DATASETS))
    hyperparameters = fields.Nested(HyperparametersSchema, load_default=dict, allow_none=False, error_messages=REQUIRED)

    @validates_schema
    def fits_the_method(self, data: dict[str, Any], **_kwargs: Any) -> None:
        """The dataset is one that the method can learn from, and the hyperparameters are its own, within bounds."""
        method = METHODS[data["method"]]
        if (dataset := data.get("dataset")) is not None and dataset not in method.datasets:
            raise ValidationError(f"{data['method']} 只能使用：{'、'.join(method.datasets)}", "dataset")
        faults = {
            name: [found[1]]
            for name, value in data["hyperparameters"].items()
            if (found := fault(data["method"], name, value))
        }
        if faults:
            raise ValidationError({"hyperparameters": faults})
        if odd := conflict(data["method"], data["hyperparameters"]):
            raise ValidationError({"hyperparameters": {odd[0]: [odd[2]]}})


class LoraSchema(StrictSchema):
    """The adapter's shape, of a fresh one."""

    r = Whole(load_default=LORA["r"], validate=between(1, 256))
    alpha = Whole(load_default=LORA["alpha"], validate=between(1, 1024))


class PlanSchema(CharacterSchema):
    """`POST /api/train/check`: what a run would be told; without stages those that the data call for."""

    stages = fields.List(
        fields.Nested(StageSchema, error_messages=REQUIRED),
        load_default=None,
        allow_none=False,
        validate=validate.Length(min=1, max=8, error="必须有 {min} 到 {max} 个"),
        error_messages=LIST,
    )
    adapter = Text(load_default=None, allow_none=False, validate=at_most(200))
    lora = fields.Nested(LoraSchema, load_default=dict, allow_none=False, error_messages=REQUIRED)
    max_length = Whole(load_default=MAX_LENGTH, validate=between(16, 131_072))
    seed = Whole(load_default=0, validate=between(0, MAX_SEED))
    held_out = Number(load_default=HELD_OUT, validate=between(0.0, 0.5))
    guard = Truth(load_default=True)
    activation_checkpointing = Truth(load_default=False)

    @validates_schema
    def one_shape(self, data: dict[str, Any], **_kwargs: Any) -> None:
        """An adapter that a run goes on from has its own shape."""
        if data["adapter"] is not None and data["lora"]:
            raise ValidationError("继续训练已有 adapter 时不能提供", "lora")


class StartSchema(PlanSchema):
    """`POST /api/train/start`; `rebuild` is the id of a run that is trained again, `resume` of one that goes on."""

    rebuild = Whole(load_default=None, allow_none=False, validate=between(1, MAX_ID))
    resume = Whole(load_default=None, allow_none=False, validate=between(1, MAX_ID))
    unload_model = Truth(load_default=False)
    reload_model = Truth(load_default=False)

    @validates_schema(pass_original=True)
    def rebuilt_as_it_was(self, data: dict[str, Any], given: dict[str, Any], **_kwargs: Any) -> None:
        """A run that is rebuilt or resumed has its own plan."""
        faults: dict[str, list[str]] = {}
        for of_a_run in ("rebuild", "resume"):
            if data[of_a_run] is not None:
                others = given.keys() - {of_a_run, "unload_model", "reload_model"}
                faults |= {name: [f"不能与 {of_a_run} 同时提供"] for name in others}
        if faults:
            raise ValidationError(faults)


class StopSchema(StrictSchema):
    """`POST /api/train/stop`."""

    save = Truth(load_default=False)


class RunsSchema(CharacterSchema):
    """`GET /api/train/runs`."""

    limit = QueryWhole(load_default=20, validate=between(1, 1000))


class MetricsSchema(StrictSchema):
    """`GET /api/train/metrics`: the next page is after `next` of this one; without `run` of the last run."""

    run = QueryWhole(load_default=None, allow_none=False, validate=between(1, MAX_ID))
    after = QueryWhole(load_default=0)
    limit = QueryWhole(load_default=1000, validate=between(1, 10_000))


class LogFileSchema(StrictSchema):
    """`GET /api/train/log`: without `run` of the last run."""

    run = QueryWhole(load_default=None, allow_none=False, validate=between(1, MAX_ID))


class LogsSchema(LogFileSchema):
    """`GET /ws/train/logs`: the run whose lines the client has, and `next` of the last of them."""

    after = QueryWhole(load_default=None, allow_none=False)


class AdapterSchema(StrictSchema):
    """`POST /api/adapters/delete`."""

    adapter = Text(required=True, validate=at_most(200))


class NoteSchema(AdapterSchema):
    """`POST /api/adapters/note`; null: none."""

    note = Text(required=True, allow_none=True, validate=at_most(2000))


class PromoteSchema(AdapterSchema, CharacterSchema):
    """`POST /api/adapters/promote`; "base" is the base model as it is."""
