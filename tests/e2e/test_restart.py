"""A run outlives the server that started it."""

import json
import time
from pathlib import Path

import psutil

from benchmarks.serving import running

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
