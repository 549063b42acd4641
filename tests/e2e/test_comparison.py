"""A comparison with a real server process and the real demo model: an adapter of 40 pairs against the base model."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import Server, running
from benchmarks.training_data import pairs

# It is about the model; tests/web compares on both databases.
pytestmark = [pytest.mark.needs("demo model"), pytest.mark.sqlite_only, pytest.mark.long]

PLAN = {"stages": [{"method": "simpo", "hyperparameters": {"epochs": 1}}]}
FEW = {"num_responses": 2, "max_new_tokens": 64, "enable_thinking": False}


def _until(server: Server, number: int, **at_least: int) -> Any:
    """The comparison, when its progress is so far, or its replies are written."""
    while True:
        data = server.call("GET", f"/api/comparisons/{number}")["data"]
        if data["state"] != "answering" or any(data["progress"][name] >= least for name, least in at_least.items()):
            return data
        time.sleep(0.1)


def _given_back(server: Server) -> None:
    while server.call("GET", "/api/model/status")["data"]["comparison"] is not None:
        time.sleep(0.1)


def _vote(server: Server, number: int, votes: int) -> None:
    """Vote for the shorter reply, without knowing whose it is."""
    for _ in range(votes):
        one = server.call("GET", f"/api/comparisons/{number}/next")["data"]
        side = min(("left", "right"), key=lambda name: len(one[name]["content"]))
        server.call("POST", f"/api/comparisons/{number}/votes", {"round": one["round"], "vote": side})


def test_an_adapter_is_compared_on_what_it_has_not_seen(tmp_path: Path) -> None:
    """Trained on 40 pairs, it answers those held out; a kill loses only what was being written; votes make pairs."""
    rows = pairs()[:40]
    with running(tmp_path / "home") as server:
        for row in rows:
            server.call("POST", "/api/dataset/add", {"mode": "single", **row})
        server.call("POST", "/api/prompts", {"prompts": [{"message": f"Riddle {number}?"} for number in range(8)]})
        server.call("POST", "/api/train/start", PLAN)
        assert server.wait_for_training()["adapter"] == "li-simpo-1"
        server.call("POST", "/api/model/load", FEW | {"adapter": "base"})
        begun = server.call("POST", "/api/comparisons", {"adapter": "li-simpo-1", "against": "base", "count": 10})
        number, prompts = begun["data"]["id"], begun["data"]["prompts"]
        assert prompts == 10
        assert server.ask("POST", "/api/generate", {"message": "Hi."}).status_code == 503
        _until(server, number, answered=2)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    with running(tmp_path / "home") as server:
        killed = _until(server, number)
        assert killed["state"] == "failed" and killed["progress"]["answered"] >= 2
        _vote(server, number, 2)
        server.call("POST", "/api/model/load", FEW | {"adapter": "base"})
        again = server.call("POST", "/api/comparisons", {"adapter": "li-simpo-1", "against": "base", "count": 10})
        number = again["data"]["id"]
        done = _until(server, number)
        _given_back(server)
        assert (done["state"], done["progress"]["answered"]) == ("open", 10)
        first = server.call("GET", f"/api/comparisons/{number}/next")["data"]
        assert first["message"] in [row["human_input"] for row in rows]
        open_votes = first["remaining"]
        _vote(server, number, open_votes)
        data = server.call("GET", f"/api/comparisons/{number}")["data"]
        assert sum(data["votes"].values()) == 10 and data["votes"]["tied"] == 10 - open_votes
        assert server.call("GET", "/api/dataset/stats")["data"]["preference"]["count"] == 40 + 2 + open_votes
        assert server.call("GET", "/api/model/status")["data"]["adapter"] is None
