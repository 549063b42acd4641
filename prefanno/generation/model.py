"""A loaded model: base weights, perhaps an adapter on top. Everything here runs in the engine's one thread.

This module imports torch, transformers and peft only inside functions: the server answers `/health` before they are
needed.
"""

import ctypes
import difflib
import gc
import sys
from collections.abc import Callable
from typing import Any

from prefanno.errors import InvalidInput
from prefanno.generation.config import GenerationConfig, Reply
from prefanno.generation.sampling import Decoder, seed_of
from prefanno.prompting import ChatTemplate, Message, conversation

REDRAWS = 2
NEAR_DUPLICATE = 0.9  # share of equal text above which a person would see the same reply twice
FALLBACK = "……"  # what a character "says" when the model wrote nothing but tags, three times over


class LocalModel:
    """Base model and adapter in memory. Made by `load`, ended by `free`."""

    def __init__(self, base: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.template = ChatTemplate.of(self.tokenizer)
        weights: Any = AutoModelForCausalLM.from_pretrained(base, dtype=_dtype(), use_safetensors=True)
        self._base: Any = weights.to(device()).eval()
        self._model: Any = self._base

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

        if self._model is not self._base:
            self._base = self._model.unload()
            self._model = self._base
        if adapter:
            self._model = PeftModel.from_pretrained(self._base, adapter, use_safetensors=True).eval()

    def generate(
        self,
        config: GenerationConfig,
        message: str,
        context: list[Message],
        seed: int,
        check_cancelled: Callable[[], None] = lambda: None,
    ) -> list[Reply]:
        """`num_responses` replies that differ where sampling allows it.

        Raises InvalidInput where prompt and reply do not fit the model's context, and what `check_cancelled` raises.
        """
        prompt = self.template.prompt(conversation(config.system_prompt, context, message), config.enable_thinking)
        self._check_length(prompt, config)
        decoder = Decoder(self._model, self.tokenizer, self.template, check_cancelled)
        ordinals = list(range(config.num_responses))
        replies = decoder.run(prompt, config, [seed_of(seed, i, 0) for i in ordinals])
        for attempt in range(1, REDRAWS + 1):
            again = [i for i in ordinals if not replies[i].content or _resembles(replies[i], replies[:i])]
            if not again:
                break
            drawn = decoder.run(prompt, config, [seed_of(seed, i, attempt) for i in again])
            for i, reply in zip(again, drawn, strict=True):
                replies[i] = reply
        return [_never_empty(reply) for reply in replies]

    def free(self) -> None:
        """Let go of all weights and give the memory back to the system."""
        self._model = self._base = None
        collect()

    def _check_length(self, prompt: str, config: GenerationConfig) -> None:
        tokens = len(self.tokenizer(prompt, add_special_tokens=False).input_ids)
        if tokens + config.max_new_tokens > self.context_length:
            text = (
                f"人设、上下文与消息共 {tokens} 个 token，加上 max_new_tokens={config.max_new_tokens}，"
                f"超过模型上限 {self.context_length}；请缩短内容或减小 max_new_tokens"
            )
            raise InvalidInput({"message": [text]})


def device() -> str:
    """The device to use: CUDA, else MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def gpu_memory() -> dict[str, dict[str, str | float]]:
    """Name, allocated and reserved gigabytes of each CUDA device; {} before torch is imported or without one."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
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
    """The weights' own type on a GPU; on a CPU bfloat16 where it has instructions for it, else float32."""
    import torch

    if device() != "cpu":
        return "auto"
    features = torch.cpu.get_capabilities()
    return torch.bfloat16 if features.get("avx512_bf16") or features.get("amx_bf16") else torch.float32


def _resembles(reply: Reply, others: list[Reply]) -> bool:
    text = " ".join(reply.content.casefold().split())
    for other in others:
        matcher = difflib.SequenceMatcher(None, text, " ".join(other.content.casefold().split()), autojunk=False)
        if matcher.quick_ratio() > NEAR_DUPLICATE and matcher.ratio() > NEAR_DUPLICATE:
            return True
    return False


def _never_empty(reply: Reply) -> Reply:
    return reply if reply.content else Reply(reply.thinking, FALLBACK, reply.finish_reason, reply.tokens)
