"""The tree of domain errors; it knows no HTTP.

PrefannoError
├── InvalidInput          a field is wrong; `fields` names each and says the cure
├── NotFound              there is no such thing
├── Conflict              what is there now does not allow it
│   ├── CheckRunning
│   ├── KeyReused
│   ├── NothingToUndo
│   ├── NoPrompts
│   ├── SnapshotDamaged
│   └── TrainingElsewhere
├── NotReady              the state of the machine forbids it now, and the person can change that
│   ├── ModelNotLoaded
│   ├── ModelLoading
│   ├── ModelLoaded
│   ├── TrainingRunning
│   ├── NoTraining
│   └── NothingToTrain
├── QueueFull             too many wait already
├── Unavailable           a part cannot serve now; trying again later can help
│   ├── GenerationCancelled
│   │   └── ClientGone
│   ├── ComparisonRunning
│   ├── EngineFailed
│   │   ├── OutOfMemory
│   │   └── EngineBroken
│   ├── StopFailed
│   ├── CheckFailed
│   ├── ImportStopped
│   ├── RegistryDamaged
│   └── DatabaseUnavailable
│       └── DatabaseDamaged
├── StorageFull           the disk is full; nothing was stored
├── HomeInUse             another process owns this home
└── InvalidSetting        the operator's configuration is wrong

Each error has two texts: `str(error)` in English, for the log and the command line, and `detail` in Chinese, for the
API.
"""

from collections.abc import Mapping, Sequence


def printable(text: str) -> str:
    """The text without what would change a terminal's state, or could not be encoded: it may quote a file."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


class PrefannoError(Exception):
    """Anything that prefanno refuses or fails to do, with a clear reason."""

    english = "prefanno could not do this"
    detail = "操作失败"

    def __init__(self, english: str | None = None, detail: str | None = None) -> None:
        super().__init__(english or self.english)
        self.detail = detail or self.detail


class InvalidInput(PrefannoError):
    """Input that cannot be accepted; `fields` maps each field to what is wrong with it, `summary` stands for many.

    Clients of the API make most of them, so the fields' texts are Chinese; `english` is for what a command can meet.
    """

    def __init__(
        self, fields: Mapping[str, Sequence[str]], summary: str | None = None, english: str | None = None
    ) -> None:
        self.fields = {name: list(texts) for name, texts in fields.items()}
        faults = summary or "；".join(f"{name}：{'，'.join(texts)}" for name, texts in self.fields.items())
        super().__init__(f"bad input: {english or faults}", f"请求参数错误：{faults}")


class NotFound(PrefannoError):
    """There is no such thing."""

    english = "there is no such thing"
    detail = "未找到"


class Conflict(PrefannoError):
    """What is there now does not allow it."""

    english = "what is there now does not allow this"
    detail = "与当前状态冲突"


class CheckRunning(Conflict):
    """One look at the rows of a run at a time."""

    english = "the rows are being looked at for somebody else; try again when that is done"
    detail = "训练数据正在检查中，请稍后重试"


class KeyReused(Conflict):
    """An idempotency key stands for one request for ever."""

    english = "this Idempotency-Key was used for another request; use a new one"
    detail = "该 Idempotency-Key 已用于另一个请求，请换一个新的"


class NothingToUndo(Conflict):
    """The history has nothing left in this direction."""

    english = "there is nothing to undo or redo"
    detail = "没有可撤销或重做的操作"


class NoPrompts(Conflict):
    """The queue has no prompt to give."""

    english = "no prompt is in the queue; add some (POST /api/prompts or prefanno prompts import)"
    detail = "队列中没有提示，请先通过 POST /api/prompts 添加"


class SnapshotDamaged(Conflict):
    """The files of a snapshot are not what was exported."""

    english = "the snapshot is not what was exported"
    detail = "快照已损坏，与导出时的内容不一致"


class TrainingElsewhere(Conflict):
    """Of the servers on one database, one trains."""

    english = "another server on this database does the training; start it there, or stop that server first"
    detail = "训练由连接同一数据库的另一台服务器负责，请在那台服务器上启动训练，或先停止那台服务器"


class NotReady(PrefannoError):
    """The state of the machine forbids it now."""


class ModelNotLoaded(NotReady):
    """Generating needs a model."""

    english = "no model is loaded; load one first (POST /api/model/load)"
    detail = "模型未加载，请先调用 POST /api/model/load"


class ModelLoading(NotReady):
    """A load is under way."""

    english = "the model is being loaded; wait until GET /api/model/status says loaded"
    detail = "模型正在加载，请稍候（可用 GET /api/model/status 查看进度）"


class ModelLoaded(NotReady):
    """Training needs the memory that the model holds."""

    english = "a model is loaded; unload it first (POST /api/model/unload)"
    detail = "请先卸载模型：POST /api/model/unload"


class TrainingRunning(NotReady):
    """One run at a time, and no model beside it."""

    english = "a training run is under way; wait for its end or stop it (POST /api/train/stop)"
    detail = "训练已在进行中，请等待结束或调用 POST /api/train/stop"


class NoTraining(NotReady):
    """There is no run to stop."""

    english = "no training is running"
    detail = "当前没有训练在运行"


class NothingToTrain(NotReady):
    """A run needs at least one pair or conversation."""

    english = "there is nothing to train on; add a pair or a conversation (POST /api/dataset/add or /api/choices)"
    detail = "没有可训练的数据，请先通过 POST /api/dataset/add 或 /api/choices 添加偏好对或对话"


class QueueFull(PrefannoError):
    """Too many requests wait for the engine; `retry_after_s` is when one of them may be done, 1 where none is known."""

    english = "too many generations wait already; try again later"
    detail = "等待生成的请求过多，请稍后重试"

    def __init__(self, retry_after_s: float | None = None) -> None:
        super().__init__()
        self.retry_after_s = retry_after_s or 1.0


class Unavailable(PrefannoError):
    """A part cannot serve now."""


class GenerationCancelled(Unavailable):
    """A load, an unload or a request ended this generation."""

    english = "the generation was cancelled, because the model was unloaded or loaded anew"
    detail = "生成已取消：模型被卸载或重新加载，请重试"


class ClientGone(GenerationCancelled):
    """The client left while its candidates were written. Nobody reads this; the log does not need it either."""

    english = "the client left, and its generation was cancelled"
    detail = "生成已取消：客户端已断开连接"


class ComparisonRunning(Unavailable):
    """The engine answers for a comparison, by an adapter that nobody chose to talk to."""

    english = "a comparison is being answered; wait for its end or stop it (POST /api/comparisons/{id}/stop)"
    detail = "正在为对比生成回复，请等待结束或调用 POST /api/comparisons/{id}/stop"


class EngineFailed(Unavailable):
    """The engine could not load the model or generate."""

    english = "the engine failed"
    detail = "推理引擎出错"


class OutOfMemory(EngineFailed):
    """The memory does not suffice, even for a single candidate."""

    english = "there is not enough memory for this request; shorten it, or load with a smaller max_new_tokens"
    detail = "内存不足，无法生成：请缩短内容，或以更小的 max_new_tokens 重新加载"


class EngineBroken(EngineFailed):
    """The GPU can do nothing more in this process."""

    english = "the GPU failed, and can only be used again after a restart of the server; everything else works"
    detail = "GPU 发生故障，重启服务器后才能再次使用；其他功能不受影响"

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(
            f"{self.english}: {reason}" if reason else None, f"{self.detail}。原因：{reason}" if reason else None
        )


class StopFailed(Unavailable):
    """What a run started does not end, whatever it is sent: it waits inside the system, for a disk or a GPU."""

    english = "the run has not ended; it counts as running until its processes are gone"
    detail = "训练尚未结束：其进程仍在运行，结束之前仍视为训练中；请稍后重试 POST /api/train/stop"


class CheckFailed(Unavailable):
    """The program that looks at the rows of a run could not."""

    english = "the rows could not be looked at"
    detail = "无法检查训练数据"


class ImportStopped(Unavailable):
    """An import ended before it was stored."""

    english = "the import was stopped; nothing was stored"
    detail = "导入已停止，未保存任何内容"


class RegistryDamaged(Unavailable):
    """What is said of adapters cannot be read."""

    english = "outputs/adapters.json cannot be read; mend it, or move it away and promote again"
    detail = "adapters.json 无法读取：请修复或移走该文件，再重新启用 adapter"


class DatabaseUnavailable(Unavailable):
    """The database cannot be read or written now."""

    english = "the database cannot serve now"
    detail = "数据库暂时不可用，请稍后重试"


class DatabaseDamaged(DatabaseUnavailable):
    """The database's file is not what was written."""

    english = "the database is damaged; restore a backup (prefanno db restore)"
    detail = "数据库已损坏，请用 prefanno db restore 恢复备份"


class StorageFull(PrefannoError):
    """The disk is full."""

    english = "the disk is full; nothing was stored. Free some space and try again"
    detail = "磁盘已满，未保存任何内容；请清理空间后重试"


class HomeInUse(PrefannoError):
    """Another process owns this home's data."""

    english = "another prefanno uses this home"
    detail = "该目录正被另一个 prefanno 使用"


class InvalidSetting(PrefannoError):
    """A PREFANNO_ setting is wrong."""

    english = "a setting is wrong"
    detail = "配置错误"
