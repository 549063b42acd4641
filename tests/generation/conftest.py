"""The tiny model in float32, where one seed means one text, alone or in company."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Weights:
    """A model in memory, and its tokenizer."""

    model: Any
    tokenizer: Any


@pytest.fixture(scope="session")
def weights(tiny_model: Path) -> Weights:
    """The tiny model on the CPU; who changes it copies it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return Weights(model.eval(), AutoTokenizer.from_pretrained(tiny_model))
