"""Other servers of the same model, started and asked: `transformers serve`, and llama.cpp's.

They need an environment of their own, named by PEERS_PYTHON; one that sees this one's torch takes little room:

    python -m venv peers
    echo "$PWD/.venv/lib/python3.11/site-packages" > peers/lib/python3.11/site-packages/main.pth
    peers/bin/pip install fastapi uvicorn openai rich
    CMAKE_ARGS="-DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF" peers/bin/pip install "llama-cpp-python[server]==0.3.36"
    export PEERS_PYTHON=$PWD/peers/bin/python

Both ignore `n`, so a client sends as many requests at once as it wants candidates.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from benchmarks.direct import ROWS, SAMPLING
from benchmarks.serving import ANSWER_S, free_port
from prefanno.generation.base_model import demo_file

Ask = Callable[[Sequence[Any], int], int]  # messages, the length of each candidate → the tokens of all candidates
START_S = 120.0
ENDS = (0, 2)  # of the demo model's file


@contextlib.contextmanager
def transformers_serve(model: Path, *, continuous: bool) -> Iterator[Ask]:
    """`transformers serve` on this folder, whose generation config has the sampling settings."""
    port = free_port()
    command = ["-m", "transformers.cli.transformers", "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    batching = "--continuous-batching" if continuous else "--no-continuous-batching"
    with _served("transformers.cli.serve, fastapi, uvicorn, openai", [*command, batching], port, "health"):
        yield _asking(port, {"model": str(model)})


@contextlib.contextmanager
def llama_cpp() -> Iterator[Ask]:
    """llama.cpp's server, on the file that the demo model comes as: four bits a weight."""
    port = free_port()
    command = ["-m", "llama_cpp.server", "--model", str(demo_file()), "--n_ctx", "2048", "--port", str(port)]
    threads = str(os.cpu_count())
    command += ["--n_threads", threads, "--n_threads_batch", threads, "--interrupt_requests", "False"]
    settings = {"temperature": SAMPLING["temperature"], "top_p": SAMPLING["top_p"], "top_k": SAMPLING["top_k"]}
    settings |= {"repeat_penalty": SAMPLING["repetition_penalty"], "logit_bias": dict.fromkeys(map(str, ENDS), -100)}
    with _served("llama_cpp.server.app", command, port, "v1/models"):
        yield _asking(port, settings)


class NotInstalled(Exception):
    """A peer is missing."""


@contextlib.contextmanager
def _served(modules: str, command: Sequence[str], port: int, path: str) -> Iterator[None]:
    python = os.environ.get("PEERS_PYTHON", "")
    if not python or subprocess.run([python, "-c", f"import {modules}"], check=False, capture_output=True).returncode:
        raise NotInstalled(f"not installed: {modules}; benchmarks/peers.py says how")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [python, *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as it:
        try:
            _wait(it, f"http://127.0.0.1:{port}/{path}")
            yield
        finally:
            it.kill()


def _wait(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(url, timeout=START_S).ok:
                return
        time.sleep(0.1)
    raise AssertionError(f"{process.args!r} did not start")


def _asking(port: int, settings: dict[str, Any]) -> Ask:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"

    def one(messages: Sequence[Any], length: int) -> int:
        body = {**settings, "messages": messages, "max_tokens": length}
        answer = requests.post(url, json=body, timeout=10 * ANSWER_S)
        answer.raise_for_status()
        return int(answer.json()["usage"]["completion_tokens"])

    def ask(messages: Sequence[Any], length: int) -> int:
        with ThreadPoolExecutor(ROWS) as threads:
            return sum(threads.map(lambda _: one(messages, length), range(ROWS)))

    return ask
