"""Starting, stopping and watching a run over HTTP, with scripts of a few lines in the place of train.sh."""

import asyncio
import json
from dataclasses import replace
from datetime import datetime

import pytest

from prefanno.keys import LOOP
from prefanno.settings import Settings
from prefanno.training import supervisor
from prefanno.web import answers, training_answers
from tests.conftest import Client, MakeClient
from tests.training.running import RESUMABLE
from tests.web.conftest import LASTING, PAIR, TALK, MakeTrainer, accepted, refused, until

START, STOP, STATUS = "/api/train/start", "/api/train/stop", "/api/train/status"
TRAINED = "mkdir adapter; touch adapter/adapter_config.json adapter/adapter_model.safetensors; echo done"


async def _start(client: Client) -> None:
    body = await accepted(await client.post(START), answers.Done)
    assert body == {"status": "success", "message": "训练已启动，请通过 WebSocket /ws/train/logs 获取实时日志"}


async def test_a_run_needs_something_to_train_on(client: Client) -> None:
    """With no annotation a start is refused, and no run begins."""
    await refused(await client.post(START), 400, "没有可训练的数据")
    body = await accepted(await client.get(STATUS), training_answers.TrainStatus)
    assert body["message"] == "idle"
    assert body["data"] == {"running": False, "log_count": 0, "recent_logs": [], "last_run": None}


async def test_a_run_needs_the_models_memory(client: Client) -> None:
    """With a model loaded a start is refused and names the call that unloads it."""
    await client.post("/api/dataset/add", json=PAIR)
    await client.post("/api/model/load")
    body = await refused(await client.post(START), 400, "请先卸载模型")
    assert "POST /api/model/unload" in body["detail"]


async def test_stop_needs_a_run(client: Client) -> None:
    """With no run under way a stop is refused."""
    await refused(await client.post(STOP), 400, "当前没有训练在运行")


async def test_one_run_at_a_time(make_trainer: MakeTrainer) -> None:
    """A start during a run is refused; after its stop the next one begins."""
    client = await make_trainer(LASTING)
    await _start(client)
    await refused(await client.post(START), 400, "训练已在进行中")
    for _ in range(2):
        status = await accepted(await client.get(STATUS), training_answers.TrainStatus)
        assert status["message"] == "running" and status["data"]["running"] is True
        assert status["data"]["last_run"]["state"] == "running"
        assert status["data"]["last_run"]["ended"] is None
        body = await accepted(await client.post(STOP), answers.Done)
        assert body == {"status": "success", "message": "训练已停止"}
        stopped = await accepted(await client.get(STATUS), training_answers.TrainStatus)
        assert stopped["message"] == "idle" and stopped["data"]["last_run"]["state"] == "stopped"
        await refused(await client.post(STOP), 400, "当前没有训练在运行")
        await _start(client)


async def test_a_start_exports_both_datasets(make_trainer: MakeTrainer) -> None:
    """A start writes both files beside the database, and the run gets copies of them."""
    client = await make_trainer("ls data; cat data/li_preference.json | wc -c")
    settings = client.app[LOOP].settings
    await client.post("/api/dataset/add", json=TALK)
    await _start(client)
    await client.app[LOOP].training.wait()
    for name in ("li_preference.json", "li_roleplay.json"):
        [entry] = json.loads((settings.data / name).read_text())
        assert entry and (settings.runs / "1" / "data" / name).read_text() == (settings.data / name).read_text()
    logs = [line["message"] for line in (await (await client.get(STATUS)).json())["data"]["recent_logs"]]
    assert {"li_preference.json", "li_roleplay.json"} <= set(logs)


async def test_a_run_on_one_pair_that_ends_well_has_an_adapter(make_trainer: MakeTrainer) -> None:
    """A run on a single pair whose script leaves an adapter has succeeded; the next gets another number."""
    client = await make_trainer(TRAINED)
    for number in (1, 2):
        await _start(client)
        await client.app[LOOP].training.wait()
        run = (await accepted(await client.get(STATUS), training_answers.TrainStatus))["data"]["last_run"]
        assert (run["state"], run["exit_code"], run["reason"]) == ("succeeded", 0, None)
        assert run["id"] == number and run["adapter"] == f"li-simpo-{number}"
        assert datetime.fromisoformat(run["started"]) <= datetime.fromisoformat(run["ended"])
        assert (client.app[LOOP].settings.outputs / run["adapter"]).is_dir()


async def test_a_run_that_fails_says_why(make_trainer: MakeTrainer) -> None:
    """A run whose script fails has its exit code, its last words as the reason, and no adapter."""
    client = await make_trainer("echo 'no memory left'; exit 3")
    await _start(client)
    await client.app[LOOP].training.wait()
    run = (await accepted(await client.get(STATUS), training_answers.TrainStatus))["data"]["last_run"]
    assert (run["state"], run["exit_code"], run["adapter"]) == ("failed", 3, None)
    assert "no memory left" in run["reason"]
    assert list(client.app[LOOP].settings.outputs.iterdir()) == []


async def test_a_script_that_is_not_there_fails_the_run(make_client: MakeClient, settings: Settings) -> None:
    """A train script that cannot be read is a failed run with its reason, and never a 500."""
    client = await make_client(replace(settings, train_script=str(settings.home / "none.sh")))
    await client.post("/api/dataset/add", json=PAIR)
    await _start(client)
    await client.app[LOOP].training.wait()
    run = (await accepted(await client.get(STATUS), training_answers.TrainStatus))["data"]["last_run"]
    assert run["state"] == "failed" and "none.sh" in run["reason"]


async def test_status_shows_the_last_fifty_lines(make_trainer: MakeTrainer) -> None:
    """Status counts every line of the run and shows the last 50, with local times in seconds."""
    client = await make_trainer("seq 60")
    await _start(client)
    await client.app[LOOP].training.wait()
    data = (await accepted(await client.get(STATUS), training_answers.TrainStatus))["data"]
    assert data["log_count"] == 60
    assert [line["message"] for line in data["recent_logs"]] == [str(number) for number in range(11, 61)]
    assert all(datetime.fromisoformat(line["time"]).isoformat() == line["time"] for line in data["recent_logs"])


async def test_a_run_that_saved_is_resumed(make_trainer: MakeTrainer) -> None:
    """A stop with `save` says that it was saved; resume lets the same run go on to its adapter, and not twice."""
    client = await make_trainer(RESUMABLE)
    await _start(client)
    stopped = await accepted(await client.post(STOP, json={"save": True}), answers.Done)
    assert stopped["message"] == "训练已停止，检查点已保存"
    run = (await accepted(await client.get(STATUS), training_answers.TrainStatus))["data"]["last_run"]
    assert (run["state"], run["reason"]) == ("stopped", "stopped on request, after saving")
    listed = (await accepted(await client.get("/api/train/runs"), training_answers.Runs))["data"]
    assert [(one["id"], one["state"], one["resumable"]) for one in listed["items"]] == [(1, "stopped", True)]
    await accepted(await client.post(START, json={"resume": 1}), answers.Done)
    await client.app[LOOP].training.wait()
    run = (await accepted(await client.get(STATUS), training_answers.TrainStatus))["data"]["last_run"]
    assert (run["id"], run["state"], run["adapter"]) == (1, "succeeded", "li-simpo-1")
    assert run["resumed"] >= run["started"] and not run["resumable"]
    for resumed, status in ((1, 409), (9, 404)):
        await refused(await client.post(START, json={"resume": resumed}), status)


async def test_a_run_that_did_not_save_cannot_be_resumed(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop whose run did not save in time says so, and a resume that there is nothing to go on from."""
    monkeypatch.setattr(supervisor, "SAVE_S", 0.3)
    client = await make_trainer("while [ ! -e go ]; do sleep 0.05; done")
    await _start(client)
    stopped = await accepted(await client.post(STOP, json={"save": True}), answers.Done)
    assert stopped["message"] == "训练已停止，未能保存检查点"
    answer = await client.post(START, json={"resume": 1})
    assert (await refused(answer, 409))["detail"] == "训练 1 没有可继续的检查点，请用 rebuild 重新训练"


async def test_a_run_that_ends_while_it_is_to_save_is_done(make_trainer: MakeTrainer) -> None:
    """A run that comes to its end, asked to save, has succeeded, and the stop says so."""
    client = await make_trainer(f"while [ ! -e save ]; do sleep 0.05; done\n{TRAINED}")
    await _start(client)
    stopped = await accepted(await client.post(STOP, json={"save": True}), answers.Done)
    assert stopped["message"] == "训练已完成"


async def test_stop_ends_every_process_of_the_run(make_trainer: MakeTrainer) -> None:
    """When stop has answered, a process that the script put into the background writes no more."""
    client = await make_trainer("(while true; do date +%s%N > beat; sleep 0.01; done) & sleep 1000")
    await _start(client)
    beat = client.app[LOOP].settings.runs / "1" / "beat"
    await until(beat.exists)
    await accepted(await client.post(STOP), answers.Done)
    beat.unlink(missing_ok=True)
    await asyncio.sleep(0.2)
    assert not beat.exists()
