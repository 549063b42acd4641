"""The schemas that validate requests: types, ranges, defaults, each once. `openapi.py` describes the API by them.

Strict: unknown fields are refused, no "4" for 4, no 1 for true, no 4.0 for an int. Texts are Chinese.
"""

import math
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema

from prefanno import text
from prefanno.generation.config import GenerationConfig

MAX_SEED = 2**31 - 1
MODES = ("single", "multi")
MAX_DIGITS = 9


class StrictSchema(Schema):
    """Refuses what it does not know."""

    class Meta:
        """An explicit setting, which OpenAPI shows as `additionalProperties: false`."""

        unknown = RAISE

    error_messages = {"unknown": "未知字段，请删除", "type": "必须是 JSON 对象"}


REQUIRED: dict[str, Any] = {"required": "缺少该字段", "null": "不能为 null"}


class Text(fields.String):
    """A string that can be stored: visible, without NUL and lone surrogates."""

    default_error_messages = {**REQUIRED, "invalid": "必须是字符串"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if fault := text.fault(value):
            raise ValidationError(fault)
        return value


class Whole(fields.Integer):
    """An integer, and nothing that merely equals one."""

    default_error_messages = {**REQUIRED, "invalid": "必须是整数"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if type(value) is not int:
            raise self.make_error("invalid")
        return value


class Number(fields.Float):
    """A finite number."""

    default_error_messages = {**REQUIRED, "invalid": "必须是有限的数字"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if type(value) is not int and (type(value) is not float or not math.isfinite(value)):
            raise self.make_error("invalid")
        return value


class Truth(fields.Boolean):
    """true or false."""

    default_error_messages = {**REQUIRED, "invalid": "必须是 true 或 false"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if type(value) is not bool:
            raise self.make_error("invalid")
        return value


class QueryWhole(Whole):
    """An integer in a query string, in plain decimal digits."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if not (isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS):
            raise self.make_error("invalid")
        return int(value)


def between(low: float, high: float) -> validate.Range:
    """From `low` to `high`, both included."""
    return validate.Range(min=low, max=high, error="必须在 {min} 到 {max} 之间")


def one_of(*choices: str) -> validate.OneOf:
    """One of the choices."""
    return validate.OneOf(choices, error="必须是以下之一：{choices}")


class Nothing(StrictSchema):
    """A body without fields."""


class TurnSchema(StrictSchema):
    """One earlier turn."""

    role = Text(required=True, validate=one_of("user", "assistant"))
    content = Text(required=True)


class Context(fields.List[Any]):
    """Earlier turns: roles alternate, the last is the assistant's; null and [] mean none."""

    default_error_messages = {"invalid": "必须是数组"}

    def __init__(self) -> None:
        turn = fields.Nested(TurnSchema, error_messages=REQUIRED)
        super().__init__(turn, load_default=list, allow_none=True)

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Also of null, which marshmallow would hand on as None."""
        turns: list[Any] = super().deserialize(value, *args, **kwargs) or []
        roles = [turn["role"] for turn in turns]
        if roles != (["assistant", "user"] * len(roles))[: len(roles)][::-1]:
            raise ValidationError("user 与 assistant 必须交替出现，且最后一条必须是 assistant")
        return turns


class LoadSchema(StrictSchema):
    """`POST /api/model/load`; a field left out has its default."""

    enable_thinking = Truth(load_default=GenerationConfig.enable_thinking)
    show_thinking = Truth(load_default=GenerationConfig.show_thinking)
    mode = Text(load_default=GenerationConfig.mode, validate=one_of(*MODES))
    num_responses = Whole(load_default=GenerationConfig.num_responses, validate=between(2, 10))
    temperature = Number(load_default=GenerationConfig.temperature, validate=between(0.1, 2.0))
    top_p = Number(load_default=GenerationConfig.top_p, validate=between(0.1, 1.0))
    top_k = Whole(load_default=GenerationConfig.top_k, validate=between(1, 100))
    repetition_penalty = Number(load_default=GenerationConfig.repetition_penalty, validate=between(1.0, 2.0))
    max_new_tokens = Whole(load_default=GenerationConfig.max_new_tokens, validate=between(64, 2048))
    system_prompt = Text(metadata={"description": "人设；缺省为默认人设"})


class GenerateSchema(StrictSchema):
    """`POST /api/generate`."""

    message = Text(required=True)
    context = Context()
    seed = Whole(load_default=None, allow_none=False, validate=between(0, MAX_SEED))


class AnnotationSchema(StrictSchema):
    """`POST /api/dataset/add`; in single mode `rejected` is required."""

    mode = Text(required=True, validate=one_of(*MODES))
    human_input = Text(required=True)
    chosen = Text(required=True)
    chosen_thinking = Text(load_default=None, allow_none=True)
    rejected = Text(load_default=None, allow_none=True)
    rejected_thinking = Text(load_default=None, allow_none=True)
    context = Context()

    @validates_schema(skip_on_field_errors=False)
    def single_has_rejected(self, data: dict[str, Any], **_kwargs: Any) -> None:
        """A preference needs both sides."""
        if data.get("mode") == "single" and data.get("rejected", "") is None:
            raise ValidationError("single 模式必须提供 rejected", "rejected")


class ListSchema(StrictSchema):
    """`GET /api/dataset/list`."""

    dataset = Text(load_default="preference", validate=one_of("preference", "roleplay"))
    limit = QueryWhole(load_default=10, validate=between(1, 1000))
