"""The model that a run begins with: the base model, with a fresh LoRA adapter or with one to go on from."""

import sys
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed
from transformers.utils import logging

from prefanno.training.config import RunConfig


def model(config: RunConfig) -> Any:
    """In bfloat16 where the device computes in it, else in float32; the adapter's own weights are in float32."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    set_seed(config.seed)
    base = AutoModelForCausalLM.from_pretrained(config.base_model_path, dtype=dtype(), use_safetensors=True)
    if config.start is not None:
        return PeftModel.from_pretrained(base, config.start, is_trainable=True)
    lora = LoraConfig(
        r=config.lora["r"],
        lora_alpha=config.lora["alpha"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora)


def tokenizer(config: RunConfig) -> Any:
    """The base model's, which can pad."""
    found: Any = AutoTokenizer.from_pretrained(config.base_model_path)
    if found.pad_token is None:
        found.pad_token = found.eos_token
    return found


def context_length(config: RunConfig) -> int:
    """Tokens that the base model can read; where it does not say, no limit."""
    shape: Any = AutoConfig.from_pretrained(config.base_model_path).get_text_config()
    return int(getattr(shape, "max_position_embeddings", None) or sys.maxsize)


def dtype() -> torch.dtype:
    """What the device computes fast in."""
    features = torch.cpu.get_capabilities()
    fast = torch.cuda.is_available() or features.get("avx512_bf16") or features.get("amx_bf16")
    return torch.bfloat16 if fast else torch.float32
