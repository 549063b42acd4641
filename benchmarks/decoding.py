"""Candidates against plain `generate(num_return_sequences=4)`, and where the time of a decode step goes.

    python -m benchmarks.decoding                 all tables, about ten minutes
    python -m benchmarks.decoding requests        requests against `generate`: prefill, 16, 64, 128 tokens
    python -m benchmarks.decoding natural         the same with replies that end by themselves
    python -m benchmarks.decoding steps           one step against its linear layers, and reading the weights once

The demo model, an 800-token prompt, N = 4, the same sampling settings. For exact lengths both run on a copy of the
model that never ends a turn. Neither has a server around it, both begin with the tokens of the prompt.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import direct
from benchmarks.direct import CONFIG, ROWS, SAMPLING
from benchmarks.training_data import questions
from prefanno.generation.batch import Batch
from prefanno.generation.model import LocalModel

PROMPT = 800
LENGTHS = (16, 64, 128)
NATURAL = 256  # the most that a reply may have where it ends by itself
ASKED = 8  # other questions for replies that end by themselves; the first warms up
STEPS = 40
BUFFER = 2**30  # bytes; larger than any cache


def main() -> None:
    """Print the tables."""
    asked = sys.argv[1:] or ["requests", "natural", "steps"]
    print(direct.machine(), flush=True)
    if "requests" in asked:
        requests()
    if "natural" in asked:
        natural()
    if "steps" in asked:
        steps()


def requests() -> None:
    """Whole requests, by turns."""
    _head()
    with tempfile.TemporaryDirectory() as folder:
        base = direct.endless(Path(folder))
        ours, plain = LocalModel(str(base)), _plain(base)
        prompt = direct.prompt(ours, PROMPT)
        _row("prefill: one token", direct.by_turns(_exactly(ours, plain, prompt, 1)))
        for length in LENGTHS:
            _row(f"exactly {length} tokens", direct.by_turns(_exactly(ours, plain, prompt, length)))
        ours.free()


def natural() -> None:
    """Replies that end by themselves, to another question in each round; tokens are counted, since chance differs."""
    base = direct.demo()
    ours, plain = LocalModel(str(base)), _plain(base)
    lengths: dict[str, list[list[int]]] = {"prefanno": [], "generate": []}
    prompts = {name: [direct.prompt(ours, PROMPT, question) for question in questions()[:ASKED]] for name in lengths}

    def write() -> None:
        rows = direct.rows(ours, replace(CONFIG, max_new_tokens=NATURAL), ROWS, len(lengths["prefanno"]))
        direct.write(ours, [(prompts["prefanno"].pop(), rows)])
        lengths["prefanno"].append([row.reply().tokens for row in rows])

    def generate() -> None:
        lengths["generate"].append(_generate(plain, prompts["generate"].pop(), NATURAL))

    taken = direct.by_turns({"prefanno": write, "generate": generate}, ASKED - 1)
    _head()
    _row(f"natural lengths, at most {NATURAL}", taken)
    for name, counts in lengths.items():
        means = [statistics.mean(each) for each in counts[1:]], [max(each) for each in counts[1:]]
        speed = sum(map(sum, counts[1:])) / sum(taken[name])
        print(f"{name}: {_two(*means)} tokens in a reply and in the longest of four, {speed:.0f} tokens/s")
    ours.free()


def steps() -> None:
    """A step with all that belongs to it, against what it cannot do without."""
    ours, plain = LocalModel(str(direct.demo())), _plain(direct.demo())
    size = sum(parameter.numel() * parameter.element_size() for parameter in ours.weights.parameters())
    weights_ms = size / _bandwidth() * 1000
    print(f"\nweights: {size / 1e6:.0f} MB, read once at measured bandwidth: {weights_ms:.1f} ms")
    print("\n| one step, ms | linear layers | step | ratio | transformers' forward alone | to ours |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, prompts, length in (
        ("1 prompt of 100 tokens, 4 rows", 1, 100),
        ("1 prompt of 800 tokens, 4 rows", 1, 800),
        ("8 prompts of about 100 tokens, 32 rows", 8, 100),
        ("8 prompts of about 800 tokens, 32 rows", 8, 800),
    ):
        linear = _linear_layers(ours, prompts * ROWS)
        step, theirs = _step(ours, prompts, length), _their_step(plain, prompts * ROWS, length)
        print(
            f"| {name} | {linear:.1f} | {step:.1f} | {step / linear:.2f} | {theirs:.1f} | {theirs / step:.2f} |",
            flush=True,
        )


def _plain(base: Path) -> Any:
    """The model as transformers loads it, with its own attention."""
    from transformers import AutoModelForCausalLM

    from prefanno.generation.model import _dtype

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=_dtype())
    return model.eval()


def _exactly(ours: LocalModel, plain: Any, prompt: list[int], length: int) -> dict[str, Callable[[], None]]:
    config = replace(CONFIG, max_new_tokens=length)

    def write() -> None:
        rows = direct.rows(ours, config, ROWS)
        direct.write(ours, [(prompt, rows)])
        _hold([row.reply().tokens for row in rows], length)

    def generate() -> None:
        _hold(_generate(plain, prompt, length), length)

    return {"prefanno": write, "generate": generate}


def _hold(lengths: Sequence[int], length: int) -> None:
    if set(lengths) != {length}:
        raise AssertionError(f"not {length} tokens each: {lengths}")


def _generate(plain: Any, prompt: Sequence[int], most: int) -> list[int]:
    """How many tokens each reply has, its end included."""
    import torch

    ids = torch.tensor([prompt])
    settings = {**SAMPLING, "do_sample": True, "num_return_sequences": ROWS, "max_new_tokens": most}
    written = plain.generate(ids, attention_mask=torch.ones_like(ids), **settings)[:, ids.shape[1] :]
    ends = plain.generation_config.eos_token_id
    ends = torch.tensor(ends if isinstance(ends, list) else [ends])
    return [min(most, int((~torch.isin(row, ends)).sum()) + 1) for row in written]


def _step(ours: LocalModel, prompts: int, length: int) -> float:
    batch = Batch(ours.weights, ours.vocabulary.ends)
    for number in range(prompts):
        config = replace(CONFIG, max_new_tokens=10 * STEPS)
        batch.add(direct.prompt(ours, length - 5 * number), direct.rows(ours, config, ROWS, number))
    full = prompts * ROWS
    return _median_ms(batch.step, lambda: len(batch.rows) == full)


def _their_step(plain: Any, rows: int, length: int) -> float:
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=plain.config)
    column = torch.full((rows, 1), 100)

    def step() -> None:
        plain(input_ids=column, past_key_values=cache, use_cache=True, logits_to_keep=1)

    with torch.inference_mode():
        plain(input_ids=torch.full((1, length), 100), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(rows)
        return _median_ms(step)


def _linear_layers(ours: LocalModel, rows: int) -> float:
    """Nothing but the products with the weights, one layer after the other."""
    import torch

    layers = [layer for layer in ours.weights.modules() if isinstance(layer, torch.nn.Linear)]
    inputs = [torch.randn(rows, 1, layer.in_features, dtype=layer.weight.dtype) for layer in layers]

    def multiply() -> None:
        for layer, given in zip(layers, inputs, strict=True):
            layer(given)

    with torch.inference_mode():
        return _median_ms(multiply)


def _bandwidth() -> float:
    """Bytes a second that all cores together read from memory."""
    import torch

    buffer = torch.ones(BUFFER // 8, dtype=torch.int64)
    return BUFFER / (_median_ms(buffer.sum) / 1000)


def _median_ms(work: Callable[[], Any], counts: Callable[[], bool] = lambda: True) -> float:
    taken = []
    for number in range(STEPS + 5):
        started = time.perf_counter()
        work()
        if number >= 5 and counts():
            taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken)


def _two(first: Sequence[float], second: Sequence[float]) -> str:
    return f"{statistics.mean(first):.0f} and {statistics.mean(second):.0f}"


def _head() -> None:
    print("\n| 800-token prompt, N = 4 | prefanno, s | generate, s | to generate's | times faster |")
    print("| --- | --- | --- | --- | --- |", flush=True)


def _row(name: str, taken: dict[str, list[float]]) -> None:
    ours, theirs = (statistics.median(taken[name]) for name in ("prefanno", "generate"))
    print(f"| {name} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} | {theirs / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
