"""Eight people at once, through the real HTTP server: against the same in sequence, and against other servers.

    python -m benchmarks.clients together short [rounds]   prefanno at once and in sequence, and the best of the others
    python -m benchmarks.clients together long [rounds]    the same with 800-token prompts
    python -m benchmarks.clients servers one [rounds]      the table of all servers, a request at a time
    python -m benchmarks.clients servers eight [rounds]    the same for eight at once; a round takes about five minutes

N = 4 candidates for each, of exactly 64 tokens, or 128 for the table of servers: all run on a copy of the demo model
that never ends a turn. Peers that are not installed are named; `benchmarks/peers.py` says how to install them.
"""

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import direct, peers
from benchmarks.direct import CONFIG, ROUNDS, ROWS, SAMPLING
from benchmarks.peers import Ask
from benchmarks.serving import running

CLIENTS = 8
TURNS = {"short": 0, "long": 13}  # of the conversation before the question: about 30 and 800 tokens
ASKED = [f"{number} people asked before me. What do you sell?" for number in range(CLIENTS)]
Works = dict[str, Callable[[], None]]


def main() -> None:
    """Print the tables."""
    table, *options = sys.argv[1:] or ["together", *TURNS]
    rounds = next((int(option) for option in options if option.isdecimal()), ROUNDS)
    prompts = [option for option in options if option in TURNS]
    print(direct.machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
        model = direct.endless(Path(folder))
        if table == "servers":
            _servers(servers, model, Path(folder) / "home", options, rounds)
        else:
            _together(servers, model, Path(folder) / "home", prompts, rounds)


def _together(servers: contextlib.ExitStack, model: Path, home: Path, prompts: Sequence[str], rounds: int) -> None:
    asks = {"prefanno": servers.enter_context(_prefanno(model, home, 64))}
    _add_peer(
        asks, servers, "transformers serve, continuous batching", peers.transformers_serve(model, continuous=True)
    )
    print("\n| 8 clients, N = 4, 64 tokens | s, median | min | max | tokens/s | to prefanno at once |")
    print("| --- | --- | --- | --- | --- | --- |")
    for prompt in prompts:
        works: Works = {f"{prompt} prompts, {name}, at once": _at_once(ask, prompt, 64) for name, ask in asks.items()}
        works[f"{prompt} prompts, prefanno, in sequence"] = _in_sequence(asks["prefanno"], prompt, 64, CLIENTS)
        _print(direct.by_turns(works, rounds), CLIENTS * 64)


def _servers(servers: contextlib.ExitStack, model: Path, home: Path, options: Sequence[str], rounds: int) -> None:
    asks = {
        "prefanno": servers.enter_context(_prefanno(model, home, 128)),
        "plain generate, in sequence": _generate(model),
    }
    _add_peer(asks, servers, "transformers serve", peers.transformers_serve(model, continuous=False))
    _add_peer(
        asks, servers, "transformers serve, continuous batching", peers.transformers_serve(model, continuous=True)
    )
    _add_peer(asks, servers, "llama.cpp's server, 4 bits", peers.llama_cpp())
    print("\n| 800-token prompt, N = 4, 128 tokens | s, median | min | max | tokens/s | to prefanno |")
    print("| --- | --- | --- | --- | --- | --- |")
    if "eight" not in options:
        one: Works = {f"one request, {name}": _in_sequence(ask, "long", 128, 1) for name, ask in asks.items()}
        _print(direct.by_turns(one, rounds), 128)
    if "one" not in options:
        eight: Works = {f"eight at once, {name}": _at_once(ask, "long", 128) for name, ask in asks.items()}
        eight["eight at once, plain generate, in sequence"] = _in_sequence(
            asks["plain generate, in sequence"], "long", 128, 8
        )
        _print(direct.by_turns(eight, rounds, warm_up=False), CLIENTS * 128)


def _add_peer(
    asks: dict[str, Ask], servers: contextlib.ExitStack, name: str, peer: contextlib.AbstractContextManager[Ask]
) -> None:
    try:
        asks[name] = servers.enter_context(peer)
    except peers.NotInstalled as missing:
        print(f"{name}: {missing}")


@contextlib.contextmanager
def _prefanno(model: Path, home: Path, length: int) -> Iterator[Ask]:
    """Our server, loaded with the settings that all share."""
    settings = {**SAMPLING, "num_responses": ROWS, "max_new_tokens": length, "enable_thinking": False}
    with running(home, MODEL=str(model)) as server:
        server.call("POST", "/api/model/load", {**settings, "system_prompt": CONFIG.system_prompt})

        def ask(messages: Sequence[Any], length: int) -> int:
            del length  # it is set when the model is loaded
            body = {"context": messages[1:-1], "message": messages[-1]["content"]}
            return sum(candidate["tokens"] for candidate in server.call("POST", "/api/generate", body)["responses"])

        yield ask


def _generate(model: Path) -> Ask:
    """Plain `generate` in this process, as scripts use it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights: Any = AutoModelForCausalLM.from_pretrained(model)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)

    def ask(messages: Sequence[Any], length: int) -> int:
        asked: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        written = weights.generate(**asked, num_return_sequences=ROWS, max_new_tokens=length)
        return int((written.shape[1] - asked["input_ids"].shape[1]) * ROWS)

    return ask


def _at_once(ask: Ask, prompt: str, length: int) -> Callable[[], None]:
    def work() -> None:
        with ThreadPoolExecutor(CLIENTS) as threads:
            _hold(list(threads.map(lambda asked: ask(_messages(prompt, asked), length), ASKED)), length)

    return work


def _in_sequence(ask: Ask, prompt: str, length: int, clients: int) -> Callable[[], None]:
    return lambda: _hold([ask(_messages(prompt, asked), length) for asked in ASKED[:clients]], length)


def _hold(tokens: list[int], length: int) -> None:
    if any(abs(count - ROWS * length) > ROWS for count in tokens):  # llama.cpp's server counts one more now and then
        raise AssertionError(f"not {ROWS} times {length} tokens for each: {tokens}")


def _messages(prompt: str, asked: str) -> list[Any]:
    persona = {"role": "system", "content": CONFIG.system_prompt}
    return [persona, *direct.talk(TURNS[prompt]), {"role": "user", "content": asked}]


def _print(taken: dict[str, list[float]], length: int) -> None:
    """Rows whose first is what the others are compared with; `length` is of all clients together, N times each."""
    first = statistics.median(next(iter(taken.values())))
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        figures = f"{median:.1f} | {min(seconds):.1f} | {max(seconds):.1f} | {ROWS * length / median:.0f}"
        print(f"| {name} | {figures} | {median / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
