"""The schemas that validate requests: types, ranges, defaults, each once. `openapi.py` describes the API by them.

Strict: unknown fields are refused, no "4" for 4, no 1 for true, no 4.0 for an int. Texts are Chinese.
"""

from typing import Any

from marshmallow import ValidationError, fields, missing, validate, validates_schema

from prefanno.annotation.choices import VERDICTS
from prefanno.db.search import LONGEST, SHORTEST
from prefanno.generation.config import GenerationConfig
from prefanno.web.fields import (
    MAX_DIGITS,
    REQUIRED,
    Number,
    QueryTruth,
    QueryWhole,
    StrictSchema,
    Text,
    Time,
    Truth,
    Whole,
    at_most,
    between,
    one_of,
)

MAX_SEED = 2**31 - 1
MAX_REQUEST_ID = 100
MAX_ID = 10**MAX_DIGITS - 1
MODES = ("single", "multi")
LIST: dict[str, Any] = {"invalid": "必须是数组", "null": "不能为 null"}
SOME = validate.Length(min=1, error="不能为空")
DATASETS = ("preference", "roleplay")
SLUG = validate.Regexp(r"[a-z0-9_]{1,40}\Z", error="只能用小写字母、数字和下划线，最多 40 个")


class Id(Text):
    """A number that the API gives as text, as it does for generations."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        digits = super()._deserialize(value, attr, data, **kwargs)
        if not (digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS):
            raise ValidationError(f"必须是数字组成的字符串，最多 {MAX_DIGITS} 位")
        return int(digits)


class CharacterSchema(StrictSchema):
    """A character's slug; absent: the current character."""

    character = Text(load_default=None, allow_none=False, validate=SLUG)


class TurnSchema(StrictSchema):
    """One earlier turn."""

    role = Text(required=True, validate=one_of("user", "assistant"))
    content = Text(required=True)


class Context(fields.List[Any]):
    """Earlier turns: roles alternate, the last is the assistant's; null and [] mean none."""

    default_error_messages = {"invalid": "必须是数组"}

    def __init__(self, load_default: Any = list) -> None:
        turn = fields.Nested(TurnSchema, error_messages=REQUIRED)
        super().__init__(turn, load_default=load_default, allow_none=True)

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Also of null, which marshmallow would hand on as None."""
        if value is missing and self.load_default is missing:
            return missing
        turns: list[Any] = super().deserialize(value, *args, **kwargs) or []
        roles = [turn["role"] for turn in turns]
        if roles != (["assistant", "user"] * len(roles))[: len(roles)][::-1]:
            raise ValidationError("user 与 assistant 必须交替出现，且最后一条必须是 assistant")
        return turns


class ConfigSchema(StrictSchema):
    """How candidates are made; a field left out has its default."""

    enable_thinking = Truth(load_default=GenerationConfig.enable_thinking)
    show_thinking = Truth(load_default=GenerationConfig.show_thinking)
    mode = Text(load_default=GenerationConfig.mode, validate=one_of(*MODES))
    num_responses = Whole(load_default=GenerationConfig.num_responses, validate=between(2, 10))
    temperature = Number(load_default=GenerationConfig.temperature, validate=between(0.1, 2.0))
    top_p = Number(load_default=GenerationConfig.top_p, validate=between(0.1, 1.0))
    top_k = Whole(load_default=GenerationConfig.top_k, validate=between(1, 100))
    repetition_penalty = Number(load_default=GenerationConfig.repetition_penalty, validate=between(1.0, 2.0))
    max_new_tokens = Whole(load_default=GenerationConfig.max_new_tokens, validate=between(64, 2048))
    system_prompt = Text(metadata={"description": "人设；缺省为角色的人设"})


class LoadSchema(ConfigSchema, CharacterSchema):
    """`POST /api/model/load`; `adapter` is one of the character's, or "base" for none."""

    adapter = Text(load_default=None, allow_none=False, validate=at_most(200))


class RequestId(Text):
    """What a client, or else prefanno, calls a generation while it is under way."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        name = super()._deserialize(value, attr, data, **kwargs)
        if not name.isprintable():
            raise ValidationError("只能包含可打印字符")
        return name


class CancelSchema(StrictSchema):
    """`POST /api/generate/cancel`."""

    request_id = RequestId(required=True, validate=at_most(MAX_REQUEST_ID))


class GenerateSchema(CharacterSchema):
    """`POST /api/generate`; with `parent` the context is that of the turn it goes on from."""

    message = Text(required=True)
    context = Context()
    seed = Whole(load_default=None, allow_none=False, validate=between(0, MAX_SEED))
    parent = Id(load_default=None, allow_none=False)
    request_id = RequestId(load_default=None, allow_none=False, validate=at_most(MAX_REQUEST_ID))

    @validates_schema
    def one_context(self, data: dict[str, Any], **_kwargs: Any) -> None:
        """The turn has its own."""
        if data["parent"] is not None and data["context"]:
            raise ValidationError("context 与 parent 不能同时提供", "context")


class AnnotationSchema(CharacterSchema):
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


class ListSchema(CharacterSchema):
    """`GET /api/dataset/list`."""

    dataset = Text(load_default="preference", validate=one_of(*DATASETS))
    limit = QueryWhole(load_default=10, validate=between(1, 1000))


class ExportSchema(CharacterSchema):
    """`GET /api/export`; with `run`, the data of that run, as they were exported."""

    format = Text(load_default="sharegpt")
    run = QueryWhole(load_default=None, allow_none=False)

    @validates_schema(pass_original=True)
    def run_alone(self, data: dict[str, Any], given: dict[str, Any], **_kwargs: Any) -> None:
        """Its files have a format and a character."""
        if data["run"] is not None and (others := {"format", "character"} & given.keys()):
            raise ValidationError({name: ["不能与 run 同时提供"] for name in others})


class ImportSchema(CharacterSchema):
    """`POST /api/import`; the body is the file."""

    format = Text(load_default="sharegpt")
    dry_run = QueryTruth(load_default=False)
    skip_bad = QueryTruth(load_default=False)
    skip_near = QueryTruth(load_default=False)


def reasons(default: Any = missing) -> fields.List[Any]:
    """Tags that say why."""
    texts = Text(validate=at_most(100), error_messages=REQUIRED)
    return fields.List(
        texts,
        load_default=default,
        validate=at_most(20),
        error_messages=LIST,
    )


class ChoiceSchema(StrictSchema):
    """`POST /api/choices`; `chosen` and `ranking` name candidates by their `id`."""

    generation_id = Id(required=True)
    verdict = Text(required=True, validate=one_of(*VERDICTS))
    chosen = Whole(load_default=None, allow_none=False, validate=between(1, 10))
    ranking = fields.List(
        fields.List(Whole(validate=between(1, 10)), validate=SOME, error_messages=LIST),
        load_default=None,
        allow_none=False,
        validate=SOME,
        error_messages=LIST,
    )
    content = Text(load_default=None, allow_none=False)
    thinking = Text(load_default=None, allow_none=True)
    reasons = reasons(list)
    note = Text(load_default=None, allow_none=True)
    annotator = Text(load_default=None, allow_none=True, validate=at_most(100))


class ReplySchema(StrictSchema):
    """One of the replies that a choice was among."""

    content = Text(required=True)
    thinking = Text(load_default=None, allow_none=True)
    rank = Whole(load_default=None, allow_none=True, validate=between(1, 10))
    candidate = Whole(load_default=None, allow_none=True, validate=between(1, 10))


class ChangeSchema(StrictSchema):
    """What is to change; a field left out stays."""

    @validates_schema
    def something(self, data: dict[str, Any], **_kwargs: Any) -> None:
        """An edit changes something."""
        if not data:
            raise ValidationError("至少提供一个要修改的字段")


class EditSchema(ChangeSchema):
    """`POST /api/annotations/{id}/edit`."""

    human_input = Text()
    context = Context(load_default=missing)
    verdict = Text(validate=one_of(*VERDICTS))
    replies = fields.List(
        fields.Nested(ReplySchema, error_messages=REQUIRED),
        validate=validate.Length(min=1, max=10, error="必须有 {min} 到 {max} 个"),
        error_messages=LIST,
    )
    reasons = reasons()
    note = Text(allow_none=True)
    annotator = Text(allow_none=True, validate=at_most(100))


class FiltersSchema(CharacterSchema):
    """What is looked for; a field left out is no limit."""

    q = Text(validate=validate.Length(min=SHORTEST, max=LONGEST, error="必须有 {min} 到 {max} 个字符"))
    dataset = Text(validate=one_of(*DATASETS))
    verdict = Text(validate=one_of(*VERDICTS))
    adapter = Text()
    annotator = Text()
    reason = Text()
    since = Time()
    until = Time()


class SearchSchema(FiltersSchema):
    """`GET /api/annotations`: the next page is below the last id of this one."""

    deleted = QueryTruth(load_default=False)
    before = QueryWhole()
    limit = QueryWhole(load_default=20, validate=between(1, 1000))


class PageSchema(CharacterSchema):
    """Newest first; the next page is below the last id of this one."""

    before = QueryWhole(load_default=None, allow_none=False)
    limit = QueryWhole(load_default=20, validate=between(1, 1000))


class BulkSchema(StrictSchema):
    """Annotations by `ids`, or all that `where` finds."""

    ids = fields.List(
        Whole(validate=between(1, MAX_ID)),
        load_default=None,
        allow_none=False,
        validate=validate.Length(min=1, max=10_000, error="必须有 {min} 到 {max} 个"),
        error_messages=LIST,
    )
    where = fields.Nested(FiltersSchema, load_default=None, allow_none=False, error_messages=REQUIRED)

    @validates_schema
    def one_of_both(self, data: dict[str, Any], **_kwargs: Any) -> None:
        """Either names what is meant."""
        if (data["ids"] is None) == (data["where"] is None):
            raise ValidationError("ids 与 where 必须且只能提供一个", "ids")


class NewCharacterSchema(StrictSchema):
    """`POST /api/characters`."""

    slug = Text(required=True, validate=SLUG)
    name = Text(required=True, validate=at_most(100))
    system_prompt = Text(load_default=None, allow_none=True)


class CharacterEditSchema(ChangeSchema):
    """`POST /api/characters/{slug}/edit`; a null persona is the default one."""

    name = Text(validate=at_most(100))
    system_prompt = Text(allow_none=True)
