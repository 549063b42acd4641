"""Another adapter on a loaded base model, beside loading the base again: a random model of 1.1 billion parameters.

    python -m benchmarks.swapping [swaps]      needs 7 GB of memory and 3 GB of disk

Two random adapters of rank 16 take each other's place. Between the first and the last swap the process may not grow by
more than GROWTH, or the old adapters would still be there. The base's files are deleted before the first, so that a
swap cannot read them.
"""

import gc
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks import direct
from prefanno.generation.model import LocalModel

GROWTH = 64 * 2**20
TINY_LLAMA: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}


def main() -> None:
    """Print the table."""
    swaps = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = _made(folder)
        loads = [_timed(lambda: LocalModel(str(folder / "base")).free()) for _ in range(5)]
        model = LocalModel(str(folder / "base"))
        shutil.rmtree(folder / "base")
        model.use(str(folder / "one"))
        sizes, times = [], []
        for number in range(swaps):
            times.append(_timed(lambda: model.use(str(folder / ("two", "one")[number % 2]))))  # noqa: B023 - called here
            gc.collect()
            sizes.append(psutil.Process().memory_info().rss)
    print(f"{direct.machine()}; {size / 1e9:.2f} billion parameters, adapters of rank 16")
    print("| | median, s | of | \n| --- | --- | --- |")
    print(f"| the base read again | {statistics.median(loads):.2f} | {len(loads)} |")
    print(f"| an adapter swapped | {statistics.median(times):.2f} | {len(times)} |")
    grown = sizes[-1] - sizes[0]
    print(f"grown over {swaps - 1} swaps: {grown / 2**20:.1f} MiB (at most {GROWTH / 2**20:.0f})")
    sys.exit(grown > GROWTH)


def _made(folder: Path) -> int:
    """The base and two adapters; how many parameters the base has."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    base: Any = LlamaForCausalLM(LlamaConfig(**TINY_LLAMA))
    base.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(direct.demo()).save_pretrained(folder / "base")
    for name in ("one", "two"):
        lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        adapted: Any = get_peft_model(base, lora)
        adapted.save_pretrained(str(folder / name))
        base = adapted.unload()
    torch.set_default_dtype(torch.float32)
    return sum(parameter.numel() for parameter in base.parameters())


def _timed(work: Callable[[], Any]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


if __name__ == "__main__":
    main()
