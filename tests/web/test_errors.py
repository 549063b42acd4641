"""The one error shape: every source of an error is visited, none has another."""

import errno
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy import text

from prefanno import errors
from prefanno.app import create_app
from prefanno.db import upgrade
from prefanno.errors import PrefannoError
from prefanno.keys import LOOP
from prefanno.settings import Settings
from prefanno.web.middlewares import STATUSES
from tests.conftest import Client
from tests.web.conftest import PAIR, counts, refused

SECRET = "what only the log may know"
AT_START = {errors.HomeInUse, errors.InvalidSetting}  # end the program before there is a server
TABLE = {
    errors.NotFound: (404, "未找到"),
    errors.CheckRunning: (409, "训练数据正在检查中"),
    errors.KeyReused: (409, "该 Idempotency-Key 已用于另一个请求"),
    errors.NothingToUndo: (409, "没有可撤销或重做的操作"),
    errors.NoPrompts: (409, "队列中没有提示"),
    errors.TrainingElsewhere: (409, "训练由连接同一数据库的另一台服务器负责"),
    errors.SnapshotDamaged: (409, "快照已损坏"),
    errors.ModelNotLoaded: (400, "模型未加载"),
    errors.ModelLoading: (400, "模型正在加载"),
    errors.ModelLoaded: (400, "请先卸载模型"),
    errors.TrainingRunning: (400, "训练已在进行中"),
    errors.NoTraining: (400, "当前没有训练在运行"),
    errors.NothingToTrain: (400, "没有可训练的数据"),
    errors.GenerationCancelled: (503, "生成已取消"),
    errors.ClientGone: (503, "生成已取消"),
    errors.QueueFull: (429, "等待生成的请求过多"),
    errors.ComparisonRunning: (503, "正在为对比生成回复"),
    errors.EngineFailed: (503, "推理引擎出错"),
    errors.OutOfMemory: (503, "内存不足"),
    errors.EngineBroken: (503, "GPU 发生故障"),
    errors.CheckFailed: (503, "无法检查训练数据"),
    errors.StopFailed: (503, "训练尚未结束"),
    errors.ImportStopped: (503, "导入已停止，未保存任何内容"),
    errors.RegistryDamaged: (503, "adapters.json 无法读取：请修复或移走该文件，再重新启用 adapter"),
    errors.DatabaseUnavailable: (503, "数据库暂时不可用"),
    errors.DatabaseDamaged: (503, "数据库已损坏"),
    errors.StorageFull: (507, "磁盘已满"),
}

Raise = Callable[[Callable[[], Exception]], Awaitable[Client]]


def _leaves(kind: type[PrefannoError]) -> set[type[PrefannoError]]:
    below = kind.__subclasses__()
    return set().union(*map(_leaves, below)) if below else {kind}


def _http_errors(kind: type[web.HTTPError] = web.HTTPError) -> set[type[web.HTTPError]]:
    concrete = {kind} if kind.status_code >= 400 else set()
    return concrete.union(*map(_http_errors, kind.__subclasses__()))


def _made(kind: type[web.HTTPError]) -> web.HTTPError:
    if issubclass(kind, web.HTTPMethodNotAllowed):
        return kind("GET", ["POST"])
    if issubclass(kind, web.HTTPRequestEntityTooLarge):
        return kind(1, 2)
    return kind(SECRET) if issubclass(kind, web.HTTPUnavailableForLegalReasons) else kind(text=SECRET)


@pytest.fixture
async def raising(settings: Settings) -> Raise:
    """Makes servers whose /raise raises what it is told to."""

    async def make(error: Callable[[], Exception]) -> Client:
        async def handler(_request: web.Request) -> web.Response:
            raise error()

        settings.data.mkdir(parents=True, exist_ok=True)
        upgrade.upgrade(settings.database)
        app = create_app(settings)
        app.router.add_get("/raise", handler)
        client = TestClient(TestServer(app))
        await client.start_server()
        return client

    return make


def test_every_error_that_a_request_can_meet_has_a_status() -> None:
    """Each leaf of the tree but those at start belongs to exactly one entry of the table of statuses."""
    for leaf in _leaves(PrefannoError) - AT_START:
        assert len([kind for kind in STATUSES if issubclass(leaf, kind)]) == 1, leaf


def test_the_table_is_whole() -> None:
    """The table visits every leaf without fields of its own, and those raised themselves though they are none."""
    groups = {errors.DatabaseUnavailable, errors.EngineFailed, errors.GenerationCancelled}
    assert set(TABLE) == _leaves(PrefannoError) - AT_START - {errors.InvalidInput} | groups


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
async def test_a_domain_error_has_its_status_and_text(raising: Raise, kind: type[PrefannoError]) -> None:
    """A domain error is answered with its status and its Chinese text, and nothing else."""
    async with await raising(kind) as client:
        body = await refused(await client.get("/raise"), *TABLE[kind])
    assert set(body) == {"detail"}


async def test_bad_input_names_its_fields(raising: Raise) -> None:
    """Input that cannot be accepted is a 400 with each field's texts, in `detail` too."""
    faults = {"top_k": ["必须是整数"], "top_p": ["太大", "不好"]}
    async with await raising(lambda: errors.InvalidInput(faults)) as client:
        body = await refused(await client.get("/raise"), 400, "请求参数错误")
    assert body["errors"] == faults
    assert all(name in body["detail"] for name in faults)


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, AssertionError, TimeoutError, PermissionError])
async def test_a_bug_has_an_incident_and_its_traceback_only_in_the_log(
    raising: Raise, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """A bug is a 500 with an incident id; what happened stands in the log under that id, not in the answer."""
    async with await raising(lambda: kind(SECRET)) as client:
        body = await refused(await client.get("/raise"), 500)
    assert set(body) == {"detail", "incident"} and body["incident"] in body["detail"]
    assert SECRET not in json.dumps(body) and "Traceback" not in json.dumps(body)
    assert body["incident"] in caplog.text and SECRET in caplog.text and "Traceback" in caplog.text


@pytest.mark.parametrize("kind", sorted(AT_START, key=str), ids=lambda kind: kind.__name__)
async def test_an_error_without_a_status_is_a_bug(raising: Raise, kind: type[PrefannoError]) -> None:
    """A domain error that no request should meet has the one shape, too."""
    async with await raising(lambda: kind(SECRET)) as client:
        body = await refused(await client.get("/raise"), 500)
    assert "incident" in body and SECRET not in json.dumps(body)


async def test_a_full_disk_is_no_bug(raising: Raise) -> None:
    """A write that fails for want of space is a 507."""
    async with await raising(lambda: OSError(errno.ENOSPC, "No space left on device")) as client:
        await refused(await client.get("/raise"), 507, "磁盘已满")


@pytest.mark.parametrize("kind", sorted(_http_errors(), key=str), ids=lambda kind: kind.__name__)
async def test_aiohttps_own_errors_have_the_one_shape(raising: Raise, kind: type[web.HTTPError]) -> None:
    """Whatever aiohttp or an extension of it raises keeps its status and gets a Chinese sentence."""
    async with await raising(lambda: _made(kind)) as client:
        answer = await client.get("/raise")
        body = await refused(answer, kind.status_code)
    assert SECRET not in json.dumps(body)
    assert answer.headers.get("Allow") == ("POST" if kind is web.HTTPMethodNotAllowed else None)


async def test_redirects_are_no_errors(client: Client) -> None:
    """The root leads to the documentation."""
    answer = await client.get("/", allow_redirects=False)
    assert answer.status == 302 and answer.headers["Location"] == "/docs"


@pytest.mark.parametrize("path", ["/api/dataset/stats", "/api/dataset/list", "/api/dataset/add"])
async def test_without_its_database_the_server_says_so(client: Client, path: str) -> None:
    """With the database gone, what needs it is a 503."""
    await client.app[LOOP].database.close()
    answer = await (client.post(path, json=PAIR) if path.endswith("add") else client.get(path))
    await refused(answer, 503, "数据库暂时不可用")


@pytest.mark.sqlite_only
async def test_on_a_full_disk_nothing_is_stored(client: Client) -> None:
    """When the database cannot grow, an add is a 507 and stores nothing; with room again it succeeds."""
    database = client.app[LOOP].database
    await database.write(lambda session: session.execute(text("PRAGMA max_page_count = 1")))
    await refused(await client.post("/api/dataset/add", json=PAIR | {"chosen": "离" * 50_000}), 507, "磁盘已满")
    assert await counts(client) == (0, 0)
    await database.write(lambda session: session.execute(text("PRAGMA max_page_count = 100000")))
    assert (await client.post("/api/dataset/add", json=PAIR)).status == 200


async def test_a_start_that_cannot_write_its_files(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the export meets a full disk, the start is a 507, and the next one is not refused as a second one."""
    await client.post("/api/dataset/add", json=PAIR)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", full)
        await refused(await client.post("/api/train/start"), 507, "磁盘已满")
    assert (await (await client.get("/api/train/status")).json())["message"] == "idle"


async def test_a_full_queue_says_when_to_try_again(raising: Raise) -> None:
    """In whole seconds, rounded up."""

    def full() -> errors.QueueFull:
        error = errors.QueueFull()
        error.retry_after_s = 2.1
        return error

    async with await raising(full) as client:
        answer = await client.get("/raise")
        await refused(answer, 429, "等待生成的请求过多")
    assert answer.headers["Retry-After"] == "3"
