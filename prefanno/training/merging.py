"""An adapter as a model of its own, for other programs: merged into its base, and converted for llama.cpp.

The recipe merges, in a process that ends with the memory that torch takes (`recipe/merge.py`). llama.cpp's converter is
no part of prefanno: it is found on PATH. Everything here blocks, and a KeyboardInterrupt ends the process under way.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prefanno import files
from prefanno.errors import Conflict, NotFound, PrefannoError, StorageFull
from prefanno.training.adapters import CARD, Adapter
from prefanno.training.keepers import SECRETS

MERGE = (sys.executable, "-P", "-m", "prefanno.training.recipe.merge")
CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf", "llama-convert-hf-to-gguf")
FULL = "No space left on device"


def converter() -> str:
    """The path of llama.cpp's converter. Raises NotFound, saying the cure."""
    found = next(filter(None, map(shutil.which, CONVERTERS)), None)
    if found is None:
        raise NotFound(
            f"none of {', '.join(CONVERTERS)} is on PATH; clone https://github.com/ggml-org/llama.cpp, install its "
            "requirements/requirements-convert_hf_to_gguf.txt, and put its folder on PATH",
            "未找到 llama.cpp 的转换脚本 convert_hf_to_gguf.py",
        )
    return found


def merge(adapter: Adapter, base: str, folder: Path) -> None:
    """Write the merged model and the adapter's card to a folder, whole or not at all.

    `base` is what `from_pretrained` can load. Raises Conflict where the folder holds something, StorageFull, and
    PrefannoError with the reason where the two cannot be merged.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Conflict(f"{folder} is there already, and not empty; name a new folder", f"目标文件夹不为空：{folder}")
    with _staged(folder) as stage:
        shutil.copy(adapter.folder / CARD, stage)
        _run([*MERGE, base, str(adapter.folder), str(stage)], f"{adapter.name} could not be merged")


def convert(program: str, folder: Path, name: str) -> Path:
    """Convert a merged model to `<name>.gguf` in its folder. Raises StorageFull, or PrefannoError with the reason."""
    made, partial = folder / f"{name}.gguf", folder / f".{name}.gguf"
    try:
        failed = f"{folder} is complete, but could not be converted"
        _run([program, str(folder), "--outfile", str(partial)], failed, quiet=True)
        files.sync(partial)
        partial.replace(made)
    finally:
        partial.unlink(missing_ok=True)
    return made


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A hidden folder beside this one, which takes its name after the block; gone where the block fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    stage.mkdir()
    try:
        yield stage
        for file in stage.iterdir():
            files.sync(file)
        stage.replace(folder)
        files.sync(folder.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _run(command: list[str], failed: str, *, quiet: bool = False) -> None:
    """Run it to its end; what it prints is shown unless `quiet`, and the last line of its complaints is the reason."""
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    with tempfile.TemporaryFile() as complained:
        output = subprocess.DEVNULL if quiet else None
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=complained
        ) as process:
            try:
                code = process.wait()
            finally:
                process.kill()
        complained.seek(0)
        lines = complained.read().decode(errors="replace").strip().splitlines()
    if code:
        reason = lines[-1] if lines and code > 0 else f"it ended with {code}"
        raise StorageFull if FULL in reason else PrefannoError(f"{failed}: {reason}")
