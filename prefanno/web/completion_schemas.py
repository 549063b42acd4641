"""OpenAI's chat completions, as far as they can be served: what is asked, and what comes back.

Fields that are not here are ignored: other programs send many that are meant for other servers.
"""

from collections.abc import Mapping
from typing import Any

from marshmallow import EXCLUDE, ValidationError, fields, post_load, pre_load, validate

from prefanno.web.answers import Answer
from prefanno.web.fields import REQUIRED, Number, StrictSchema, Text, Truth, Whole, at_most, between, one_of
from prefanno.web.schemas import LIST, MAX_SEED

TEXT_PARTS = "必须是字符串，或由 type 为 text 的部分组成的数组"
OPTIONAL: dict[str, Any] = {"load_default": None, "allow_none": True}


class LenientSchema(StrictSchema):
    """Strict about what it knows, and blind to the rest."""

    class Meta:
        """The one difference."""

        unknown = EXCLUDE


class Anything(Text):
    """A string, also a blank one."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        blank = isinstance(value, str) and not value.strip()
        return value if blank else super()._deserialize(value, attr, data, **kwargs)


class Content(Anything):
    """A text, or the parts of one; null is none."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if isinstance(value, list):
            texts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
            whole = [text for text in texts if isinstance(text, str)]
            if not value or len(whole) != len(value):
                raise ValidationError(TEXT_PARTS)
            value = "".join(whole)
        return super()._deserialize(value, attr, data, **kwargs)


class ChatMessageSchema(LenientSchema):
    """One message."""

    role = Text(required=True, validate=one_of("system", "developer", "user", "assistant"))
    content = Content(required=True, allow_none=True)


class StreamOptionsSchema(LenientSchema):
    """What a stream tells beside the text."""

    include_usage = Truth(load_default=False, allow_none=True)


class CompletionSchema(LenientSchema):
    """`POST /v1/chat/completions`; what is left out is as the model was loaded. `model` may be any: one is loaded."""

    model = Anything(**OPTIONAL)
    messages = fields.List(
        fields.Nested(ChatMessageSchema, error_messages=REQUIRED),
        required=True,
        allow_none=False,
        validate=validate.Length(min=1, error="不能为空"),
        error_messages=REQUIRED | LIST,
    )
    temperature = Number(**OPTIONAL, validate=between(0.0, 2.0))
    top_p = Number(**OPTIONAL, validate=between(0.0, 1.0))
    max_tokens = Whole(**OPTIONAL, validate=between(1, 2048))
    max_completion_tokens = Whole(**OPTIONAL, validate=between(1, 2048))
    n = Whole(load_default=1, allow_none=False, validate=between(1, 10))
    seed = Whole(**OPTIONAL, validate=between(0, MAX_SEED))
    stop = fields.List(
        Anything(validate=at_most(200)),
        load_default=list,
        allow_none=False,
        validate=validate.Length(max=4, error="最多 {max} 个"),
        error_messages=LIST,
    )
    stream = Truth(load_default=False)
    stream_options = fields.Nested(
        StreamOptionsSchema, load_default=lambda: {"include_usage": False}, error_messages=REQUIRED
    )

    @pre_load
    def plain(self, data: Any, **_kwargs: Any) -> Any:
        """One stop may be given as it is, and null is as good as absent."""
        if not isinstance(data, Mapping):
            return data
        given = {name: value for name, value in data.items() if value is not None or name == "messages"}
        if isinstance(given.get("stop"), str):
            given["stop"] = [given["stop"]]
        return given

    @post_load
    def stops_that_stop(self, data: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        """An empty stop would be found everywhere: it is none."""
        return data | {"stop": [stop for stop in data["stop"] if stop]}


class ReplyMessage(Answer):
    """A reply; `reasoning_content` is the thought, where it is enabled and shown."""

    role = fields.String(required=True)
    content = fields.String(required=True)
    reasoning_content = fields.String()


class CompletedChoice(Answer):
    """One of `n`."""

    index = fields.Integer(required=True)
    message = fields.Nested(ReplyMessage, required=True)
    finish_reason = fields.String(required=True, metadata={"enum": ["stop", "length"]})


class Usage(Answer):
    """Tokens; those of thoughts are among the completion's."""

    prompt_tokens = fields.Integer(required=True)
    completion_tokens = fields.Integer(required=True)
    total_tokens = fields.Integer(required=True)


class Completed(Answer):
    """The answer without `stream`; `created` is in seconds since the epoch."""

    id = fields.String(required=True)
    object = fields.String(required=True)
    created = fields.Integer(required=True)
    model = fields.String(required=True)
    choices = fields.List(fields.Nested(CompletedChoice), required=True)
    usage = fields.Nested(Usage, required=True)


class Model(Answer):
    """What is loaded."""

    id = fields.String(required=True)
    object = fields.String(required=True)
    created = fields.Integer(required=True)
    owned_by = fields.String(required=True)


class Models(Answer):
    """The answer of the list."""

    object = fields.String(required=True)
    data = fields.List(fields.Nested(Model), required=True)
