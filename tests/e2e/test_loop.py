"""The whole loop over HTTP and WebSocket only: a real server process, the real demo model, real training.

The tests run in order on one server: each goes on where the one before stopped.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from benchmarks.serving import Server
from benchmarks.taste import replies
from benchmarks.taste_measure import measure
from benchmarks.training_data import pairs, questions

# It is about the model and takes minutes; test_clients.py goes through the same loop on both databases.
pytestmark = [pytest.mark.needs("demo model"), pytest.mark.sqlite_only]

FIRST, TALKS = 7, 11  # pairs that the first run learns, and up to which the next ones are conversations
LOAD = {"num_responses": 2, "max_new_tokens": 64}
# The first run only has to change the model; whether it is taught is asked after the last, which has all epochs.
SHORT = {"stages": [{"method": method, "hyperparameters": {"epochs": 1}} for method in ("sft", "simpo")]}


def contents(answer: Any) -> list[tuple[str | None, str]]:
    """The candidates' texts."""
    return [(candidate.get("thinking"), candidate["content"]) for candidate in answer["responses"]]


async def train(server: Server, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Start a run once the socket is open; every message until it has ended."""
    messages = []
    async with aiohttp.ClientSession() as session, session.ws_connect(server.url + "/ws/train/logs") as socket:
        messages += [await socket.receive_json(), await socket.receive_json()]
        await asyncio.to_thread(server.call, "POST", "/api/train/start", plan)
        async for message in socket:
            messages.append(message.json())
            if messages[-1] == {"type": "status", "running": False}:
                break
    return messages


def test_health_answers_before_torch_is_loaded(server: Server) -> None:
    """/health answers with no model loaded, and torch is not in the server's memory."""
    assert server.call("GET", "/health")["status"] == "ok"
    maps = Path(f"/proc/{server.process.pid}/maps")
    assert not maps.exists() or "libtorch" not in maps.read_text()


def test_candidates_are_generated(server: Server) -> None:
    """The loaded demo model answers in character, thoughts included, and the same seed gives the same candidates."""
    assert server.call("POST", "/api/model/load", LOAD)["message"] == "模型加载成功，未使用adapter"
    first = server.call("POST", "/api/generate", {"message": "Who are you?", "seed": 7})
    assert len(first["responses"]) == 2
    assert all(candidate["content"] and candidate["thinking"] for candidate in first["responses"])
    again = server.call("POST", "/api/generate", {"message": "Who are you?", "seed": 7})
    assert contents(again) == contents(first)


def test_choices_are_stored(server: Server) -> None:
    """8 single and 4 multi annotations are counted and listed, newest first, with the thoughts that were generated."""
    answer = server.call("POST", "/api/generate", {"message": "Where do you work?", "seed": 1})
    best, other = answer["responses"]
    chosen = {"human_input": "Where do you work?", "chosen": best["content"], "chosen_thinking": best["thinking"]}
    server.call("POST", "/api/dataset/add", {"mode": "single", **chosen, "rejected": other["content"], "context": []})
    newest = server.call("GET", "/api/dataset/list?limit=1")["data"]["items"][0]
    assert newest["rejected_thinking"] == other["thinking"]
    for row in pairs()[:FIRST]:
        server.call("POST", "/api/dataset/add", {"mode": "single", **row})
    for row in pairs()[FIRST:TALKS]:
        context = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Welcome to my bookshop!"}]
        multi = {"mode": "multi", "human_input": row["human_input"], "chosen": row["chosen"], "context": context}
        server.call("POST", "/api/dataset/add", multi)
    stats = server.call("GET", "/api/dataset/stats")["data"]
    assert (stats["preference"]["count"], stats["roleplay"]["count"]) == (FIRST + 1, TALKS - FIRST)
    items = server.call("GET", "/api/dataset/list?dataset=roleplay&limit=3")["data"]["items"]
    assert [item["human_input"] for item in items] == [
        row["human_input"] for row in reversed(pairs()[TALKS - 3 : TALKS])
    ]


def test_training_waits_for_the_models_memory(server: Server) -> None:
    """A start is refused while a model is loaded, and says how to unload it."""
    refusal = server.ask("POST", "/api/train/start")
    assert refusal.status_code == 400
    assert refusal.json()["detail"].startswith("请先卸载模型")
    assert "POST /api/model/unload" in refusal.json()["detail"]
    assert server.call("POST", "/api/model/unload")["message"] == "模型已卸载，显存已释放"


async def test_a_run_makes_an_adapter_and_shows_every_line(server: Server) -> None:
    """One call trains; every line of the log comes over the socket, once and in order; then the adapter is there."""
    messages = await train(server, SHORT)
    assert messages[0] == {"type": "history", "run": None, "logs": []}
    assert messages[1:3] == [{"type": "status", "running": False}, {"type": "status", "running": True}]
    lines = [message["message"] for message in messages if message["type"] == "log"]
    log = server.home / "runs" / "1" / "train.log"
    assert lines == log.read_text().splitlines()
    assert any("sft step" in line for line in lines) and any("simpo step" in line for line in lines)
    run = server.call("GET", "/api/train/status")["data"]["last_run"]
    assert (run["state"], run["exit_code"], run["adapter"]) == ("succeeded", 0, "li-simpo-1")
    assert (server.home / "outputs" / "li-simpo-1" / "adapter_model.safetensors").is_file()


def test_the_adapter_changes_the_candidates(server: Server) -> None:
    """A load names the new adapter; with it a seed gives the same candidates again, and others than without it."""
    loaded = server.call("POST", "/api/model/load", LOAD)
    path = str(server.home / "outputs" / "li-simpo-1")
    assert loaded["message"] == f"模型加载成功，使用adapter: {path}"
    assert loaded["data"]["adapter_path"] == path
    request = {"message": "Who are you?", "seed": 7}
    taught = server.call("POST", "/api/generate", request)
    assert contents(taught) == contents(server.call("POST", "/api/generate", request))
    with bare_base(server):
        bare = server.call("POST", "/api/generate", request)
    assert contents(bare) != contents(taught)
    server.call("POST", "/api/model/unload")


def test_a_stop_in_the_middle_leaves_nothing(server: Server) -> None:
    """After a stop no process of the run is alive, there is no adapter, and the next start works."""
    server.call("POST", "/api/train/start")
    keeper = wait_for_steps(server, run=2)
    tree = [keeper, *keeper.children(recursive=True)]
    assert len(tree) > 1
    assert server.call("POST", "/api/train/stop")["message"] == "训练已停止"
    assert [process for process in tree if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert server.call("GET", "/api/train/status")["data"]["last_run"]["state"] == "stopped"
    assert [folder.name for folder in (server.home / "outputs").iterdir()] == ["li-simpo-1"]


def test_a_second_run_makes_the_next_number_and_taste_arrives(server: Server) -> None:
    """A run after the stopped one, on all 40 pairs, makes the next adapter, and that speaks in character."""
    for row in pairs()[FIRST:]:
        server.call("POST", "/api/dataset/add", {"mode": "single", **row})
    server.call("POST", "/api/train/start", {"stages": [{"method": "simpo"}]})
    assert server.wait_for_training()["adapter"] == "li-simpo-2"
    taught = measure(replies(server, questions()[:6], 4))
    with bare_base(server, enable_thinking=False):
        base = measure(replies(server, questions()[:6], 4))
    assert taught.in_character >= 0.7, taught
    assert base.in_character <= 0.35, base
    assert taught.repeated_4grams <= base.repeated_4grams + 0.05
    assert taught.unknown_words <= base.unknown_words + 0.02


@contextlib.contextmanager
def bare_base(server: Server, **settings: Any) -> Iterator[None]:
    """The base model loaded without an adapter, as if none had been trained yet."""
    outputs, away = server.home / "outputs", server.home / "away"
    outputs.rename(away)
    outputs.mkdir()
    try:
        server.call("POST", "/api/model/load", LOAD | settings)
        yield
    finally:
        outputs.rmdir()
        away.rename(outputs)


def wait_for_steps(server: Server, run: int) -> psutil.Process:
    """Wait until the run has trained a step; return its keeper."""
    log = server.home / "runs" / str(run) / "train.log"
    deadline = time.monotonic() + 300
    while not (log.exists() and "step 2/" in log.read_text()):
        assert time.monotonic() < deadline, "the run never trained a step"
        time.sleep(0.2)
    keeper = psutil.Process(json.loads((log.parent / "run.json").read_text())["pid"])
    assert "prefanno.training.keeper" in keeper.cmdline()
    return keeper
