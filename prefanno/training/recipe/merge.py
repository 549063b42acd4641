"""Merge an adapter into its base model: a whole model, as transformers saves one.

    python -P -m prefanno.training.recipe.merge BASE ADAPTER FOLDER

BASE is a folder or a hub id, ADAPTER the folder of an adapter, FOLDER one that is there and empty. It gets the weights
as safetensors in the base model's own dtype, its configuration, and its tokenizer with the chat template. How far it is
stands on standard output; what is wrong is the last line of standard error, with exit code 1. It does not clear away
what it wrote before it failed: who calls it does (`training/merging.py`).
"""

import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from prefanno.training.recipe.progress import say

GIGABYTE = 1e9
BESIDE = 50e6  # bytes for what lies beside the weights: a tokenizer of 250,000 tokens takes about 30 MB


def main(arguments: list[str]) -> None:
    """Merge; what the libraries refuse becomes one line."""
    from safetensors import SafetensorError

    warnings.simplefilter("ignore")  # the libraries' deprecations are no news to who exports
    base, adapter, folder = arguments
    try:
        merge(base, Path(adapter), Path(folder))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        sys.exit(" ".join(str(error).split()))


def merge(base: str, adapter: Path, folder: Path) -> None:
    """Write the merged model into the folder. Ends the program where the disk has too little room for it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    say(f"loading {base}")
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto", use_safetensors=True)
    needed, free = model.get_memory_footprint() + BESIDE, shutil.disk_usage(folder).free
    if free < needed:
        sys.exit(f"it needs {needed / GIGABYTE:.2f} GB of disk, and {free / GIGABYTE:.2f} GB are free")
    say(f"merging {adapter.name}")
    whole = merged(model, adapter)
    say(f"saving {model.get_memory_footprint() / GIGABYTE:.2f} GB")
    whole.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def merged(model: Any, adapter: Path) -> Any:
    """The model with the adapter in its weights. Raises ValueError where the adapter makes a weight no number.

    Each layer is merged in float32 and rounded once, to its own dtype; peft alone would round the product of A and B,
    and then the sum. One layer at a time is in float32, so it takes hardly more memory than the model.
    """
    import torch
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = PeftModel.from_pretrained(model, str(adapter), use_safetensors=True)
    for layer in [one for one in adapted.modules() if isinstance(one, BaseTunerLayer)]:
        base: Any = layer.get_base_layer()
        dtype = base.weight.dtype
        base.to(torch.float32)
        layer.merge(safe_merge=True)
        base.to(dtype)
    return adapted.merge_and_unload()


if __name__ == "__main__":
    main(sys.argv[1:])
