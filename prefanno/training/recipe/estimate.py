"""What a run will take of this machine, from the model's shape and the lengths of the rows.

Memory: the base model's weights; the adapter's in float32, each with its gradient and two moments of AdamW; what the
layers keep of one batch for the backward pass. Time: the multiplications, by the speed of a trial on this device.
docs/training.md says how near it comes.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prefanno.training.config import RunConfig
from prefanno.training.methods import METHODS
from prefanno.training.recipe import base

GIGABYTE = 1e9
LIBRARIES = 0.9e9  # bytes that Python, torch and TRL hold before a model is loaded
OPTIMIZED = 16  # bytes of a trained weight: itself, its gradient, two moments
WRITTEN = 9  # times the adapter's weights: itself, and of two checkpoints each weights, two moments, the best step's
PASSES, REFERENCE = 3, 1  # forward, backward for the activations, and what the adapter costs beside
TRIAL = 2048  # rows and columns of the trial's matrices
UTILIZED = 0.5  # of the trial's speed: attention, norms and the optimizer multiply little and read much


def of(config: RunConfig, stages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """memory_gb, disk_gb and seconds, with the run's evaluations."""
    shape: Any = AutoConfig.from_pretrained(config.base_model_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)  # type: ignore[no-untyped-call]
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    weights = sum(parameter.numel() for parameter in model.parameters())
    adapter = sum(_rank(config) * (one.in_features + one.out_features) for one in linear)
    size = torch.finfo(base.dtype()).bits // 8
    kept = sum(one.in_features * (size + 4) + one.out_features * size for one in linear)  # the adapter reads float32
    batch = max(map(_batch_tokens, stages), default=0)
    if config.activation_checkpointing:
        kept /= max(shape.get_text_config().num_hidden_layers, 1) / 2  # one layer at a time, and what each begins with
    multiplied = 2 * sum(one.in_features * one.out_features for one in linear)
    again = 4 / 3 if config.activation_checkpointing else 1
    passes = again * sum(
        _tokens(of_stage, stage["accumulation"]) for stage, of_stage in zip(config.stages, stages, strict=True)
    )
    disk = adapter * 4 * WRITTEN + sum(Path(stage["file"]).stat().st_size for stage in config.stages)
    return {
        "memory_gb": round((LIBRARIES + weights * size + adapter * OPTIMIZED + batch * kept) / GIGABYTE, 2),
        "disk_gb": round(disk / GIGABYTE, 3),
        "seconds": round(passes * multiplied / (_speed() * UTILIZED)),
    }


def _rank(config: RunConfig) -> int:
    """Of the adapter that the run goes on from, else of the fresh one."""
    if config.start is None:
        return int(config.lora["r"])
    return int(json.loads((Path(config.start) / "adapter_config.json").read_text())["r"])


def _batch_tokens(found: Mapping[str, Any]) -> int:
    """Of the longest batch that can come."""
    return int(found["batch_size"] * found["tokens"]["longest"] * (1.5 if METHODS[found["method"]].pairs else 1))


def _tokens(found: Mapping[str, Any], accumulation: int) -> float:
    """Tokens times passes through the model, over all epochs."""
    tokens = sum(found["tokens"][name] for name in ("prompt", "chosen", "rejected"))
    rounds = found["steps"] * found["batch_size"] * accumulation / max(found["examples"], 1)
    return float(tokens * rounds * (PASSES + (REFERENCE if METHODS[found["method"]].reference else 0)))


def _speed() -> float:
    """Multiplications and additions in a second."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    one = torch.randn((TRIAL, TRIAL), dtype=base.dtype(), device=device)
    for _ in range(2):  # the first warms up
        started = time.perf_counter()
        float((one @ one).sum())  # waits for a GPU
        taken = time.perf_counter() - started
    return 2 * TRIAL**3 / taken
