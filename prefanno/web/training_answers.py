"""What the answers about training look like; `openapi.py` describes the API by them."""

from collections.abc import Mapping

from marshmallow import fields

from prefanno.web.answers import Answer, Done

MESSAGES: Mapping[str, str] = {
    "unreadable": "无法读取，已排除",
    "too_long": "超过 max_length，已排除（不会截断）",
    "empty_reply": "回复为空，已排除",
    "equal_sides": "chosen 与 rejected 相同，已排除",
    "vanished_thinking": "思考内容无法通过模型的模板还原，已排除",
    "tag_in_reply": "回复中含有 think 标签，已排除；思考请放在单独的字段中",
    "duplicate": "与前面的数据重复，已排除",
    "undecided": "该回复被选中与被拒绝的次数相同，而此方法从单条回复学习，已排除",
    "contradictory": "之后的选择与之相反，已排除，以后来的为准",
    "one_sided_thinking": "只有一侧有思考，训练时不使用思考",
    "unknown_tokens": "含有模型分词器不认识的字符",
    "length_bias": "几乎总是同一侧更长，模型可能只学到长度",
    "one_sided_replies": "全部是好的或全部是坏的回复，KTO 两者都需要",
}


class LogLine(Answer):
    """One line of a run's log; `time` is local, in seconds; `next` is the offset in the file behind it, in bytes."""

    time = fields.String(required=True)
    message = fields.String(required=True)
    next = fields.Integer(required=True)


class LastRun(Answer):
    """A run, as of now the run under way or the last one; times are UTC."""

    id = fields.Integer(required=True)
    state = fields.String(required=True, metadata={"enum": ["running", "succeeded", "failed", "stopped"]})
    character = fields.String(required=True)
    base_model = fields.String(required=True)
    resumable = fields.Boolean(required=True)
    started = fields.String(required=True)
    resumed = fields.String(required=True, allow_none=True)
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


class RunsData(Answer):
    """A character's runs, the last first."""

    character = fields.String(required=True)
    items = fields.List(fields.Nested(LastRun), required=True)


class Runs(Done):
    """`GET /api/train/runs`."""

    data = fields.Nested(RunsData, required=True)


class FoundInRow(Answer):
    """What was found in a line of the stage's file, 0 for all of it; `action` says what is done about it."""

    code = fields.String(required=True, metadata={"enum": list(MESSAGES)})
    action = fields.String(required=True, metadata={"enum": ["left_out", "changed", "kept"]})
    line = fields.Integer(required=True)
    detail = fields.String(required=True)
    said = fields.String(required=True)
    message = fields.String(required=True)


class RenderedExample(Answer):
    """An example as the model will see it; a method that learns from single replies has one side only."""

    line = fields.Integer(required=True)
    prompt = fields.String(required=True)
    chosen = fields.String()
    rejected = fields.String()
    tokens = fields.Integer(required=True)


class TokenCounts(Answer):
    """Tokens of what is trained on, and of what is left out; `longest` is prompt and reply of one example."""

    prompt = fields.Integer(required=True)
    chosen = fields.Integer(required=True)
    rejected = fields.Integer(required=True)
    left_out = fields.Integer(required=True)
    longest = fields.Integer(required=True)


class MeanLength(Answer):
    """Tokens of a reply."""

    chosen = fields.Float(required=True, allow_none=True)
    rejected = fields.Float(required=True, allow_none=True)


class CheckedStage(Answer):
    """One stage: rows of its file, examples that are left of them, and what was found; `counts` is by code."""

    method = fields.String(required=True)
    dataset = fields.String(required=True)
    rows = fields.Integer(required=True)
    examples = fields.Integer(required=True)
    held_out = fields.Integer(required=True)
    batch_size = fields.Integer(required=True)
    steps = fields.Integer(required=True)
    tokens = fields.Nested(TokenCounts, required=True)
    mean_length = fields.Nested(MeanLength, required=True)
    counts = fields.Dict(keys=fields.String(), values=fields.Integer(), required=True)
    findings = fields.List(fields.Nested(FoundInRow), required=True)
    rendered = fields.List(fields.Nested(RenderedExample), required=True)


class Estimate(Answer):
    """What the run will take of this machine."""

    memory_gb = fields.Float(required=True)
    disk_gb = fields.Float(required=True)
    seconds = fields.Float(required=True)


class CheckedData(Answer):
    """`ok` says that there is something to train on."""

    stages = fields.List(fields.Nested(CheckedStage), required=True)
    estimate = fields.Nested(Estimate, required=True)
    ok = fields.Boolean(required=True)


class Checked(Done):
    """The answer of a check."""

    data = fields.Nested(CheckedData, required=True)


class MetricsData(Answer):
    """Entries of a run's metrics.jsonl, which docs/training.md describes; the next page is after `next`."""

    run = fields.Integer(required=True)
    items = fields.List(fields.Dict(), required=True)
    next = fields.Integer(required=True)


class Metrics(Done):
    """The answer of metrics."""

    data = fields.Nested(MetricsData, required=True)


class OneAdapter(Answer):
    """A complete adapter; `parent` is the one that its run went on from, `snapshot` the SHA-256 of its data's manifest.

    `metrics` is what its run measured last; both are null of adapters that are older than these fields. `chosen` says
    that a load takes it by itself.
    """

    name = fields.String(required=True)
    method = fields.String(required=True)
    base_model = fields.String(required=True)
    run = fields.Integer(required=True)
    parent = fields.String(required=True, allow_none=True)
    seed = fields.Integer(required=True, allow_none=True)
    created_at = fields.String(required=True, allow_none=True)
    snapshot = fields.String(required=True, allow_none=True)
    metrics = fields.Dict(required=True, allow_none=True)
    bytes = fields.Integer(required=True)
    note = fields.String(required=True)
    promoted = fields.Boolean(required=True)
    chosen = fields.Boolean(required=True)


class InForceData(Answer):
    """The adapter that a load takes by itself; null: none."""

    character = fields.String(required=True)
    adapter = fields.String(required=True, allow_none=True)


class InForce(Done):
    """The answer of what changes which adapter that is."""

    data = fields.Nested(InForceData, required=True)


class AdaptersData(InForceData):
    """The newest first."""

    items = fields.List(fields.Nested(OneAdapter), required=True)


class Adapters(Done):
    """The answer of a list."""

    data = fields.Nested(AdaptersData, required=True)
