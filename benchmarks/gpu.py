"""What a GPU does with a model of 1.7 billion weights: checks, figures, and whether other ways to decode would pay.

    benchmarks/gpu.sh                        this, and the tests of generation on the GPU
    python -m benchmarks.gpu --dry           tiny sizes on the CPU: whether it runs, not how fast

The model has Qwen3-1.7B's shape and random weights, made from its configuration: what is measured does not depend on
what they say. Its tokenizer is that of the tests, its prompts are random tokens. A part that fails is a line of the
table, and the others go on.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import direct
from benchmarks.direct import CONFIG, ROWS
from prefanno.errors import OutOfMemory
from prefanno.generation.attention import NAME
from prefanno.generation.batch import Batch
from prefanno.generation.config import Request
from prefanno.generation.engine import Engine
from prefanno.generation.model import LocalModel, collect
from prefanno.settings import Settings
from tests import tiny

PAYS = 1.15  # times faster than prefanno's step, from which on another way would be worth having
NEVER = 255  # a token that stands for no end


@dataclass(frozen=True)
class Sizes:
    """How large all is."""

    shape: dict[str, int]
    prompt: int = 800
    tokens: int = 64  # of a request, and of the steps that are timed
    prompts: int = 8  # of the large batch


REAL = Sizes(
    {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 4096}
)
DRY = Sizes(
    {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "max_position_embeddings": 1024},
    prompt=60,
    tokens=16,
    prompts=2,
)


def main() -> None:
    """Print the table."""
    dry = "--dry" in sys.argv
    sizes = DRY if dry else REAL
    print(f"{direct.machine()}; {_device_name()}")
    if dry:
        print("DRY: tiny sizes, to see whether it runs; no figure below says anything")
    print("\n| | |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        base = _make(Path(folder) / "model", sizes)
        with _part("engine"):
            asyncio.run(_engine(Path(folder), base, sizes))
        model = LocalModel(str(base))
        with _part("model"):
            _model(model)
        with _part("prefill"):
            _prefill(model, sizes)
        with _part("attention of one step"):
            _attention(model, sizes)
        for prompts in (1, sizes.prompts):
            with _part(f"steps of {prompts * ROWS} rows"):
                _steps(model, sizes, prompts)
        model.free()
        with _part("4 bits"):
            _four_bits(base, sizes)


def _make(folder: Path, sizes: Sizes) -> Path:
    """The random model, with the tokenizer and chat template of the tests' tiny one."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tiny.save(folder)
    shape: dict[str, Any] = sizes.shape
    config = Qwen3Config(**shape, dtype="bfloat16", eos_token_id=NEVER, pad_token_id=NEVER, tie_word_embeddings=True)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: Any = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16)
    model.generation_config.eos_token_id = [NEVER]
    model.save_pretrained(folder)
    del model
    collect()
    return folder


async def _engine(home: Path, base: Path, sizes: Sizes) -> None:
    """The engine's own way, and what it does when memory does not suffice."""
    import torch

    engine = Engine(Settings(home=home, model=str(base), cache=home / "cache"))
    started = time.perf_counter()
    loaded = await engine.load(CONFIG, None)
    _line("load, s", f"{time.perf_counter() - started:.1f}, {loaded.device}")
    config = replace(CONFIG, num_responses=10, max_new_tokens=sizes.tokens)
    request = Request("x" * sizes.prompt, [], 7, config)
    replies = await engine.submit(request).replies()
    _line("10 candidates by the engine", f"{len(replies)} of {replies[0].tokens} tokens")
    if torch.cuda.is_available():
        ballast = _ballast(leaves=512 * 2**20)
        try:
            ended = f"{len(await engine.submit(request).replies())} candidates, in parts"
        except OutOfMemory:
            ended = "refused with 503"
        del ballast
        collect()
        _line("out of memory", f"{ended}; then {len(await engine.submit(request).replies())} candidates")
    else:
        _line("out of memory", "not tried on a CPU")
    await engine.close()
    if torch.cuda.is_available():
        _line("memory after unload, MiB", f"{torch.cuda.memory_allocated() / 2**20:.0f}")


def _ballast(leaves: int) -> Any:
    import torch

    collect()
    free, _ = torch.cuda.mem_get_info()
    return torch.empty(max(free - leaves, 0), dtype=torch.uint8, device="cuda")


def _model(model: LocalModel) -> None:
    weights = sum(parameter.numel() for parameter in model.weights.parameters())
    kind = model.weights.config._attn_implementation  # noqa: SLF001 - it has no public name
    _line("model", f"{weights / 1e9:.2f} billion weights, {model.weights.dtype}, {model.device}, {kind}")


def _prefill(model: LocalModel, sizes: Sizes) -> None:
    """Read once for all rows, against once for each."""
    prompt = _prompts(sizes, 1)[0]

    def read(times: int) -> None:
        _forward(model.weights, [prompt] * times, _dynamic(model))

    once, repeated = _ms(lambda: read(1)), _ms(lambda: read(ROWS))
    _line(f"prefill of {sizes.prompt} tokens, ms", f"{once:.1f} once, {repeated:.1f} for each of {ROWS} rows")


def _attention(model: LocalModel, sizes: Sizes) -> None:
    """Attention by torch as transformers calls it, and with the query heads folded; of all layers."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    shape = sizes.shape
    heads, shared, size = shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"]
    for rows in (ROWS, ROWS * sizes.prompts):
        query = torch.randn(rows, heads, 1, size, dtype=model.weights.dtype, device=model.weights.device)
        keys = [query.new_ones(rows, shared, sizes.prompt, size) for _ in range(shape["num_hidden_layers"])]
        folded = query.view(rows, shared, -1, size)
        plain_ms = _ms(lambda: [attend(query, key, key, enable_gqa=True) for key in keys])  # noqa: B023 - called here
        fold_ms = _ms(lambda: [attend(folded, key, key) for key in keys])  # noqa: B023
        verdict = "folding would pay" if plain_ms / fold_ms > PAYS else "folding would not pay"
        _line(f"attention of {rows} rows, ms", f"{plain_ms:.2f} as it is, {fold_ms:.2f} folded: {verdict}")


def _steps(model: LocalModel, sizes: Sizes, prompts: int) -> None:
    """A step of prefanno against its floor, and against other ways to decode."""
    name, rows = f"one step of {prompts * ROWS} rows, ms", prompts * ROWS
    ours = _our_step(model, sizes, prompts)
    read = sum(weight.numel() * weight.element_size() for weight in model.weights.parameters()) / _bandwidth(model)
    _line(name, f"{ours:.2f}; linear layers {_linear_layers(model, rows):.2f}; weights read once {read * 1000:.2f}")
    ways: dict[str, dict[str, Any]] = {
        "plain generate": {},
        "generate, static cache": {"cache_implementation": "static", "disable_compile": True},
        "generate, static cache, compiled": {"cache_implementation": "static"},
    }
    if find_spec("flash_attn"):
        ways["generate, flash-attn"] = {}
    for way, options in ways.items():
        with _part(way):
            model.weights.set_attn_implementation("flash_attention_2" if "flash" in way else "sdpa")
            _compared(f"{name}, {way}", _their_step(model.weights, sizes, prompts, options), ours)
    model.weights.set_attn_implementation(NAME)


def _our_step(model: LocalModel, sizes: Sizes, prompts: int) -> float:
    batch = Batch(model.weights, model.vocabulary.ends)
    config = replace(CONFIG, max_new_tokens=100 * sizes.tokens)
    for number, prompt in enumerate(_prompts(sizes, prompts)):
        batch.add(prompt, direct.rows(model, config, ROWS, number))
    return _ms(batch.step, sizes.tokens)


def _their_step(weights: Any, sizes: Sizes, prompts: int, options: dict[str, Any]) -> float:
    """From what more tokens take: all rows have prompts of one length, which is kind to them."""
    import torch

    ids = torch.full((prompts * ROWS, sizes.prompt), 100, device=weights.device)
    settings = {**direct.SAMPLING, "do_sample": True, "eos_token_id": NEVER, "pad_token_id": NEVER, **options}
    few, many = 8, 8 + sizes.tokens

    def generate(tokens: int) -> float:
        started = time.perf_counter()
        weights.generate(
            ids, attention_mask=torch.ones_like(ids), min_new_tokens=tokens, max_new_tokens=tokens, **settings
        )
        _synchronize()
        return time.perf_counter() - started

    first = generate(many)
    generate(few)
    times = [(generate(many) - generate(few)) * 1000 / (many - few) for _ in range(3)]
    if options:
        _line("  the first call of the next line, s", f"{first:.1f}")
    return statistics.median(times)


def _four_bits(base: Path, sizes: Sizes) -> None:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if not (find_spec("bitsandbytes") and torch.cuda.is_available()):
        _line("4 bits", "not tried: needs bitsandbytes and CUDA")
        return
    config: Any = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    weights: Any = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map="cuda")
    step = _their_step(weights, sizes, 1, {})
    _line(
        f"one step of {ROWS} rows, ms, generate, 4 bits", f"{step:.2f}, {torch.cuda.memory_allocated() / 2**20:.0f} MiB"
    )


def _linear_layers(model: LocalModel, rows: int) -> float:
    import torch

    layers = [layer for layer in model.weights.modules() if isinstance(layer, torch.nn.Linear)]
    inputs = [layer.weight.new_ones(rows, 1, layer.in_features) for layer in layers]
    with torch.inference_mode():
        return _ms(lambda: [layer(given) for layer, given in zip(layers, inputs, strict=True)])


def _bandwidth(model: LocalModel) -> float:
    """Bytes a second, reading."""
    import torch

    buffer = torch.ones(2**27, dtype=torch.int64, device=model.weights.device)
    return buffer.numel() * 8 / _ms(buffer.sum) * 1000


def _prompts(sizes: Sizes, count: int) -> list[list[int]]:
    """Random tokens; each prompt is a little shorter than the one before, so that they have to be padded."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(3, sizes.shape["vocab_size"], (sizes.prompt - 2 * number,), generator=generator).tolist()
        for number in range(count)
    ]


def _forward(weights: Any, prompts: list[list[int]], cache: Any) -> None:
    import torch

    with torch.inference_mode():
        weights(input_ids=torch.tensor(prompts, device=weights.device), past_key_values=cache, logits_to_keep=1)


def _dynamic(model: LocalModel) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.weights.config)


def _ms(work: Callable[[], Any], times: int = 20) -> float:
    taken = []
    for number in range(times + 3):
        _synchronize()
        started = time.perf_counter()
        work()
        _synchronize()
        if number >= 3:
            taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken)


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _compared(name: str, theirs: float, ours: float) -> None:
    _line(
        name,
        f"{theirs:.2f}: {'would pay' if ours / theirs > PAYS else 'would not pay'} ({ours / theirs:.2f} times as fast)",
    )


def _line(name: str, text: str) -> None:
    print(f"| {name} | {text} |", flush=True)


@contextmanager
def _part(name: str) -> Iterator[None]:
    """A failure is a line."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever a device and its libraries raise
        _line(name, f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200])
    collect()


if __name__ == "__main__":
    main()
