"""An adapter merged into its base model: it says the same by itself, and is whole or not there."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefanno.errors import Conflict, PrefannoError, StorageFull
from prefanno.training import adapters, merging
from prefanno.training.adapters import Adapter
from prefanno.training.config import LORA, RunConfig
from prefanno.training.recipe import merge
from tests import tiny

# peft's own
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
WAIT_S = 60.0
TOKENS = torch.arange(3, 40).unsqueeze(0)
EXACT = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of logits: what the rounding of weights and of layers leaves


def _made(tiny_model: Path, home: Path) -> Adapter:
    """A random adapter of the tiny model, published as a run's."""
    tiny.adapt(home / "runs" / "1" / "adapter", tiny_model)
    (home / "outputs").mkdir()
    config = RunConfig("li", str(tiny_model), str(tiny_model), "li-simpo-1", stages=[{"method": "simpo"}], lora=LORA)
    adapters.publish(1, home / "runs" / "1", home / "outputs", config)
    return adapters.get(home / "outputs", "li-simpo-1")


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Adapter:
    """A random adapter of the tiny model."""
    return _made(tiny_model, tmp_path / "home")


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, Path]:
    """An adapter, and the folder that it was merged to by the process of its own."""
    folder = tmp_path_factory.mktemp("merged")
    made = _made(tiny_model, folder / "home")
    merging.merge(made, str(tiny_model), folder / "new" / "out")
    return made, folder / "new" / "out"


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(TOKENS).logits.float()
    return logits


def _loaded(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def test_the_merged_model_says_what_base_and_adapter_say(exported: tuple[Adapter, Path], tiny_model: Path) -> None:
    """Loaded by itself it has their logits, and not the base model's."""
    adapter, folder = exported
    found = _logits(_loaded(folder))
    wanted = _logits(PeftModel.from_pretrained(_loaded(tiny_model), str(adapter.folder)))
    assert torch.allclose(found, wanted, atol=EXACT[torch.float32])
    assert not torch.allclose(found, _logits(_loaded(tiny_model)), atol=0.1)  # control


def test_the_folder_holds_all_that_a_program_needs(exported: tuple[Adapter, Path], tiny_model: Path) -> None:
    """Weights as safetensors, both configurations, the tokenizer with its chat template, and where it came from."""
    adapter, folder = exported
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= names
    ours, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tiny_model)
    assert ours.chat_template == theirs.chat_template == tiny.CHATML
    assert ours.encode("<|im_start|>离 Li") == theirs.encode("<|im_start|>离 Li")
    assert _loaded(folder).generation_config.to_dict() == _loaded(tiny_model).generation_config.to_dict()
    assert json.loads((folder / adapters.CARD).read_text()) == adapter.card
    assert list(folder.parent.iterdir()) == [folder]


def test_each_weight_is_rounded_once_to_the_base_models_own_dtype(tmp_path: Path, tiny_model: Path) -> None:
    """Of a bfloat16 base each weight is base plus adapter, computed in float32, rounded to bfloat16."""
    base = tmp_path / "base"
    _loaded(tiny_model, dtype=torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(base)
    adapter, folder = tiny.adapt(tmp_path / "adapter", base), tmp_path / "out"
    folder.mkdir()
    merge.main([str(base), str(adapter), str(folder)])
    exact = PeftModel.from_pretrained(_loaded(base, dtype=torch.float32), str(adapter)).merge_and_unload()
    found = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in found.values()} == {torch.bfloat16}
    for name, weight in exact.state_dict().items():
        assert torch.equal(found[name], weight.to(torch.bfloat16)), name
    wanted = _logits(PeftModel.from_pretrained(_loaded(base), str(adapter)))
    assert _loaded(folder).dtype == torch.bfloat16
    assert torch.allclose(_logits(_loaded(folder)), wanted, atol=EXACT[torch.bfloat16])


@pytest.mark.parametrize("there", ["a file", "a full folder"])
def test_what_is_there_is_not_written_over(adapter: Adapter, tmp_path: Path, there: str) -> None:
    """A folder that holds something, or a file, is refused by name before anything is loaded."""
    folder = tmp_path / "out"
    if there == "a file":
        folder.write_text("mine")
    else:
        folder.mkdir()
        (folder / "mine").touch()
    with pytest.raises(Conflict, match=r"out is there already, and not empty; name a new folder"):
        merging.merge(adapter, "/nowhere", folder)


def test_what_cannot_be_merged_is_said_and_leaves_nothing(adapter: Adapter, tmp_path: Path, tiny_model: Path) -> None:
    """An adapter with a weight that is no number, and a base model that is not there, are one line each."""
    file = adapter.folder / "adapter_model.safetensors"
    save_file({name: weight * float("nan") for name, weight in load_file(file).items()}, file)
    with pytest.raises(PrefannoError, match=r"^li-simpo-1 could not be merged: NaNs detected"):
        merging.merge(adapter, str(tiny_model), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    with pytest.raises(SystemExit, match=r"nowhere") as ended:
        merge.main(["/nowhere/at/all", str(adapter.folder), str(tmp_path)])
    assert "\n" not in str(ended.value)


def test_a_converter_that_fails_leaves_the_merged_model(tmp_path: Path) -> None:
    """Its last line is the reason; the model stays, without half a file."""
    program, folder = tmp_path / "converter", tmp_path / "out"
    program.write_text('#!/bin/sh\necho half > "$3"\necho "Model Tiny is not supported" >&2\nexit 1\n')
    program.chmod(0o755)
    folder.mkdir()
    (folder / "config.json").touch()
    with pytest.raises(PrefannoError, match=r"out is complete, but could not be converted: Model Tiny is not supp"):
        merging.convert(str(program), folder, "li-simpo-1")
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB, which is too little."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.needs("mount")
def test_a_disk_with_too_little_room_is_one_line(adapter: Adapter, disk: Path, tiny_model: Path) -> None:
    """Room for the weights is looked for before anything is written; nothing is left there."""
    with pytest.raises(PrefannoError, match=r"could not be merged: it needs 0\.05 GB of disk, and 0\.00 GB are free"):
        merging.merge(adapter, str(tiny_model), disk / "out")
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize(
    "complaint",
    ["OSError: [Errno 28] No space left on device: 'x'", "I/O error: No space left on device (os error 28)"],
)
def test_a_disk_that_fills_up_is_a_full_disk(complaint: str) -> None:
    """Whichever library finds the disk full, the error is the one that says so."""
    with pytest.raises(StorageFull):
        merging._run([sys.executable, "-c", f"import sys; sys.exit({complaint!r})"], "it failed")
    with pytest.raises(PrefannoError, match=r"^it failed: it ended with -9$"):  # control
        merging._run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], "it failed")


def test_ctrl_c_leaves_nothing(adapter: Adapter, tmp_path: Path, tiny_model: Path) -> None:
    """Interrupted while it merges, it ends the process under way, and neither folder is left."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom prefanno.training import adapters, merging\n"
        f"merging.merge(adapters.get(Path({str(adapter.folder.parent)!r}), 'li-simpo-1'), {str(tiny_model)!r}, "
        f"Path({str(tmp_path / 'out')!r}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"loading ")
        assert list(tmp_path.glob(".out-????????"))  # control
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.stdout.read()  # until the merging process, which has it, too, is gone
        assert process.wait(WAIT_S) != 0 and time.monotonic() - began < WAIT_S / 2
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
