"""The schemas that validate requests about the queue of prompts."""

from typing import Any

from marshmallow import ValidationError, fields, validate, validates_schema

from prefanno.db.prompts import ORDERS, STATES
from prefanno.web.fields import REQUIRED, QueryWhole, StrictSchema, Text, Truth, Whole, between, one_of
from prefanno.web.schemas import LIST, MAX_ID, CharacterSchema, Context

SIZE = "必须有 {min} 到 {max} 个"


class PromptSchema(StrictSchema):
    """A message after earlier turns."""

    message = Text(required=True)
    context = Context()


class NewPromptsSchema(CharacterSchema):
    """`POST /api/prompts`."""

    prompts = fields.List(
        fields.Nested(PromptSchema, error_messages=REQUIRED),
        required=True,
        validate=validate.Length(min=1, max=10_000, error=SIZE),
        error_messages={**REQUIRED, **LIST},
    )


class PromptsSchema(CharacterSchema):
    """`GET /api/prompts`: the next page is beyond the last id of this one."""

    state = Text(load_default=None, allow_none=False, validate=one_of(*STATES))
    after = QueryWhole(load_default=0)
    limit = QueryWhole(load_default=20, validate=between(1, 1000))


def _ids(**options: Any) -> fields.List[Any]:
    number = Whole(validate=between(1, MAX_ID))
    some = validate.Length(min=1, max=1000, error=SIZE)  # others wait for the transaction
    return fields.List(number, validate=some, error_messages={**REQUIRED, **LIST}, **options)


class SomePromptsSchema(StrictSchema):
    """`POST /api/prompts/delete`."""

    ids = _ids(required=True)


class ReturnSchema(CharacterSchema):
    """`POST /api/prompts/return`: those of these `ids`, or all `undecided` ones of a character."""

    ids = _ids(load_default=None, allow_none=False)
    undecided = Truth(load_default=False)

    @validates_schema
    def one_of_both(self, data: dict[str, Any], **_kwargs: Any) -> None:
        """Either names what is meant."""
        if (data["ids"] is None) != data["undecided"]:
            raise ValidationError("ids 与 undecided=true 必须且只能提供一个", "ids")


class NextSchema(CharacterSchema):
    """`POST /api/prompts/next` and its stream."""

    order = Text(load_default="given", validate=one_of(*ORDERS))
