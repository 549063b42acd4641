"""A loaded model: base weights, perhaps an adapter on top. Everything here runs in the engine's one thread.

This module imports torch, transformers and peft only inside functions: the server answers `/health` before they are
needed.
"""

import ctypes
import gc
import sys
from typing import Any

from prefanno.errors import InvalidInput
from prefanno.generation import attention
from prefanno.generation.config import Request
from prefanno.generation.writing import Vocabulary
from prefanno.prompting import ChatTemplate, conversation


class LocalModel:
    """Base model and adapter in memory: `weights` decode, `vocabulary` says what tokens mean. Ended by `free`."""

    def __init__(self, base: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        tokenizer = AutoTokenizer.from_pretrained(base)
        self._template = ChatTemplate.of(tokenizer)
        weights: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=_dtype(), device_map=_device_map(), use_safetensors=True
        )
        self._base: Any = weights.eval()
        attention.use(self._base)
        self.weights: Any = self._base
        self._adapter: str | None = None
        self.vocabulary = Vocabulary.of(tokenizer, self._template, self._base.generation_config.eos_token_id)

    @property
    def context_length(self) -> int:
        """How many tokens, prompt and reply together, the model can attend to."""
        return int(self._base.config.get_text_config().max_position_embeddings)

    @property
    def device(self) -> str:
        """Where the weights are: "cpu", "cuda:0", "mps"."""
        return str(self._base.device)

    def use(self, adapter: str | None) -> None:
        """Put this adapter (a folder) on the base in place of the one before it; None leaves the bare base."""
        from peft import PeftModel

        if adapter == self._adapter:
            return
        self._adapter = None  # whatever fails below
        if self.weights is not self._base:
            self._base = self.weights.unload()
            self.weights = self._base
        if adapter:
            self.weights = PeftModel.from_pretrained(self._base, adapter, use_safetensors=True).eval()
            self._adapter = adapter

    def prompt(self, request: Request) -> list[int]:
        """The tokens that the model continues. Raises InvalidInput where they and a reply do not fit its context."""
        config = request.config
        messages = conversation(config.system_prompt, request.context, request.message)
        tokens = self.vocabulary.encode(self._template.prompt(messages, config.enable_thinking))
        if len(tokens) + config.max_new_tokens > self.context_length:
            text = (
                f"人设、上下文与消息共 {len(tokens)} 个 token，加上 max_new_tokens={config.max_new_tokens}，"
                f"超过模型上限 {self.context_length}；请缩短内容或减小 max_new_tokens"
            )
            raise InvalidInput({"message": [text]})
        return tokens

    def free(self) -> None:
        """Let go of all weights and give the memory back to the system."""
        self.weights = self._base = None
        collect()


def device() -> str:
    """The device to use: CUDA, else MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def gpu_memory() -> dict[str, dict[str, str | float]]:
    """Name, allocated and reserved gigabytes of each CUDA device; {} until torch is imported, or without one."""
    torch: Any = sys.modules.get("torch")
    if torch is None or getattr(torch.__spec__, "_initializing", False) or not torch.cuda.is_available():
        return {}
    return {
        f"gpu_{i}": {
            "name": torch.cuda.get_device_name(i),
            "memory_allocated_gb": round(torch.cuda.memory_allocated(i) / 1e9, 2),
            "memory_reserved_gb": round(torch.cuda.memory_reserved(i) / 1e9, 2),
        }
        for i in range(torch.cuda.device_count())
    }


def collect() -> None:
    """Free what nothing refers to any more: Python's garbage, CUDA's cache, and the C heap's empty pages."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _dtype() -> Any:
    """bfloat16 where the device computes in it; else float32 on a CPU, the weights' own type on a GPU."""
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else "auto"
    if device() != "cpu":
        return "auto"
    features = torch.cpu.get_capabilities()
    return torch.bfloat16 if features.get("avx512_bf16") or features.get("amx_bf16") else torch.float32


def _device_map() -> str:
    """The one device; of several GPUs all, as accelerate divides the layers among them."""
    import torch

    return "auto" if torch.cuda.device_count() > 1 else device()
