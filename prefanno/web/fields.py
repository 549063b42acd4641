"""What request schemas are made of: strict fields, with their texts in Chinese.

Strict: unknown fields are refused, no "4" for 4, no 1 for true, no 4.0 for an int.
"""

import math
import re
from datetime import UTC, datetime
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, validate

from prefanno import text

TIME = re.compile(r"[0-9WT:., +Z-]{8,40}", re.ASCII)
MAX_DIGITS = 18  # less than 2^63


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
            raise ValidationError(fault.detail)
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


class Time(fields.String):
    """A time in ISO 8601, as the tables hold it: UTC without a zone. A time without a zone is taken for UTC."""

    default_error_messages = {**REQUIRED, "invalid": "必须是 ISO 8601 时间，例如 2026-01-27T12:00:00Z"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, str) or not TIME.fullmatch(value):
            raise self.make_error("invalid")
        try:
            moment = datetime.fromisoformat(value)
            return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
        except (ValueError, OverflowError):
            raise self.make_error("invalid") from None


class QueryTruth(Truth):
    """true or false in a query string."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if value not in ("true", "false"):
            raise self.make_error("invalid")
        return value == "true"


def at_most(length: int) -> validate.Length:
    """No longer than this, in characters or items."""
    return validate.Length(max=length, error="最多 {max} 个")
