"""A run outlives the server that started it."""

import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.serving import Server, running
from tests.reliability.conftest import Say, say  # noqa: F401 - a fixture

SCRIPT = """\
for number in $(seq 40); do echo "line $number"; sleep 0.2; done
mkdir adapter && echo '{}' > adapter/adapter_config.json && echo > adapter/adapter_model.safetensors
"""


def test_a_run_goes_on_when_the_server_ends_and_is_taken_up_by_the_next(
    tmp_path: Path, tiny_model: Path, database_url: str
) -> None:
    """SIGTERM ends the server and not the run; the next server shows every line of it and publishes its adapter."""
    script = tmp_path / "train.sh"
    script.write_text(SCRIPT)
    options = {"MODEL": str(tiny_model), "TRAIN_SCRIPT": str(script), "DATABASE_URL": database_url}
    with running(tmp_path / "home", **options) as server:
        row = {"mode": "single", "human_input": "Hi.", "chosen": "Hello.", "rejected": "No."}
        server.call("POST", "/api/dataset/add", row)
        server.call("POST", "/api/train/start")
        while server.call("GET", "/api/train/status")["data"]["log_count"] < 3:
            time.sleep(0.1)
    keeper = psutil.Process(json.loads((tmp_path / "home/runs/1/run.json").read_text())["pid"])
    assert keeper.is_running() and keeper.status() != psutil.STATUS_ZOMBIE
    with running(tmp_path / "home", **options) as server:
        run = server.wait_for_training()
        status = server.call("GET", "/api/train/status")["data"]
    assert (run["state"], run["adapter"]) == ("succeeded", "li-simpo-1")
    assert status["log_count"] == 40
    assert [line["message"] for line in status["recent_logs"]] == [f"line {number}" for number in range(1, 41)]
    assert (tmp_path / "home/outputs/li-simpo-1/prefanno.json").is_file()


def _add_pairs(server: Server, count: int) -> None:
    for number in range(count):
        row = {"mode": "single", "human_input": f"Who? {number}", "chosen": f"I am Li, {number}.", "rejected": "An AI."}
        server.call("POST", "/api/dataset/add", row)


def _plan(epochs: float) -> dict[str, Any]:
    return {"stages": [{"method": "simpo", "hyperparameters": {"epochs": epochs, "batch_size": 2}}]}


def _until_step(server: Server, step: int) -> None:
    while not any(f" step {step}/" in line["message"] for line in _status(server)["recent_logs"]):
        assert _status(server)["running"], _status(server)["last_run"]
        time.sleep(0.02)


def _status(server: Server) -> Any:
    return server.call("GET", "/api/train/status")["data"]


@pytest.mark.sqlite_only
def test_a_training_is_saved_stopped_and_resumed(tmp_path: Path, tiny_model: Path) -> None:
    """With the real recipe: a stop after saving, a restart of the server, a resume; metrics have every step once."""
    with running(tmp_path / "home", MODEL=str(tiny_model)) as server:
        _add_pairs(server, 8)
        server.call("POST", "/api/train/start", _plan(50))
        _until_step(server, 3)
        assert server.call("POST", "/api/train/stop", {"save": True})["message"] == "训练已停止，检查点已保存"
        assert _status(server)["last_run"]["resumable"]
    with running(tmp_path / "home", MODEL=str(tiny_model)) as server:
        server.call("POST", "/api/train/start", {"resume": 1})
        run = server.wait_for_training()
        assert (run["id"], run["state"], run["adapter"]) == (1, "succeeded", "li-simpo-1"), run
        items = server.call("GET", "/api/train/metrics?limit=10000")["data"]["items"]
        steps = [item["step"] for item in items if item["kind"] == "step"]
        assert steps == list(range(1, 201))


@pytest.mark.long
@pytest.mark.sqlite_only
def test_a_real_training_survives_the_kill_of_its_server(
    tmp_path: Path,
    say: Say,  # noqa: F811 - the fixture
) -> None:
    """The demo model's training goes on when the server is killed; the next one has every line of it, and its end."""
    with running(tmp_path / "home") as server:
        _add_pairs(server, 12)
        server.call("POST", "/api/train/start", _plan(4))
        _until_step(server, 2)
        server.process.kill()
        server.process.wait()
    killed = time.monotonic()
    with running(tmp_path / "home") as server:
        status = _status(server)
        adopted = time.monotonic() - killed
        assert status["running"] and status["last_run"]["id"] == 1
        run = server.wait_for_training()
        assert (run["state"], run["exit_code"], run["adapter"]) == ("succeeded", 0, "li-simpo-1"), run
        log = server.ask("GET", "/api/train/log").content
        assert log == (server.home / "runs" / "1" / "train.log").read_bytes()
        assert [f"simpo step {step}/24".encode() in log for step in range(1, 25)] == [True] * 24
        server.call("POST", "/api/model/load", {"max_new_tokens": 64, "num_responses": 2})
        assert server.call("POST", "/api/generate", {"message": "Who are you?"})["responses"]
    say(f"adopted {adopted:.2f} s after the kill, the start of the server included")
