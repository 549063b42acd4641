"""`prefanno adapters`, as a real process."""

import json
import os
from pathlib import Path

import pytest

from prefanno.settings import Settings
from prefanno.training import adapters
from prefanno.training.config import LORA, RunConfig
from tests import tiny
from tests.test_cli import Done, _here, _refusal, _run

pytestmark = pytest.mark.sqlite_only  # adapters are files
CONVERTER = """#!/bin/sh
printf '%s\\n' "$@" > "$0.said"
echo GGUF > "$3"
"""


def _publish(settings: Settings, number: int, name: str, base_model: str) -> None:
    run = settings.runs / str(number)
    (run / "adapter").mkdir(parents=True, exist_ok=True)
    for file in adapters.WEIGHTS:
        (run / "adapter" / file).touch()
    config = RunConfig("li", base_model, base_model, name, stages=[{"method": "simpo"}], lora=LORA)
    adapters.publish(number, run, settings.outputs, config)


@pytest.fixture
def home(settings: Settings) -> Settings:
    """A home with three adapters, one of them of another base model."""
    settings.outputs.mkdir(parents=True)
    tiny.adapt(settings.runs / "1" / "adapter", settings.model)
    for number, base_model in enumerate([settings.model, settings.model, "another"], 1):
        _publish(settings, number, f"li-simpo-{number}", base_model)
    return settings


def _lines(home: Settings) -> list[str]:
    return _run(home, "adapters", "list").stdout.splitlines()


def test_the_list_shows_what_a_load_takes(home: Settings) -> None:
    """A line for each, the newest first, with run, base model, size and note; * is at what a load takes."""
    _here(home, "db", "upgrade")
    assert [line[:13] for line in _lines(home)] == ["  li-simpo-3:", "* li-simpo-2:", "  li-simpo-1:"]
    assert _run(home, "adapters", "note", "li-simpo-1", "wittier").returncode == 0
    done = _run(home, "adapters", "promote", "li-simpo-1")
    assert done.stdout == "the next load of li takes li-simpo-1\n"
    assert _lines(home)[0].startswith("  li-simpo-3: run 3, on another, 0.0 MB")
    assert _lines(home)[2].startswith("* li-simpo-1: run 1, ") and _lines(home)[2].endswith("MB, promoted – wittier")
    assert _run(home, "adapters", "promote", "base").stdout == "the next load of li takes base\n"
    assert _lines(home)[-1] == f"* base: {home.model} without an adapter"
    assert _run(home, "adapters", "rollback").stdout == "the next load of li takes li-simpo-1\n"


def test_a_promoted_adapter_is_not_deleted(home: Settings) -> None:
    """`delete` takes one away for good, but not the one in force."""
    _here(home, "db", "upgrade")
    _run(home, "adapters", "promote", "li-simpo-1")
    assert _refusal(_run(home, "adapters", "delete", "li-simpo-1")).startswith("prefanno: li-simpo-1 is promoted")
    assert _run(home, "adapters", "delete", "li-simpo-2").returncode == 0
    assert [line[2:12] for line in _lines(home)] == ["li-simpo-3", "li-simpo-1"]


def _export(home: Settings, to: Path, *options: str, path: Path | None = None) -> Done:
    found = f"{path}{os.pathsep}{os.environ['PATH']}" if path else "/nowhere"
    return _run(home, "adapters", "export", "li-simpo-1", "--to", str(to), *options, PATH=found)


def test_an_adapter_is_exported(home: Settings, tmp_path: Path) -> None:
    """It says how far it is and where the model is, and gives the converter on PATH its folder; not a second time."""
    program, folder = tmp_path / "bin" / "convert_hf_to_gguf.py", tmp_path / "out"
    program.parent.mkdir()
    program.write_text(CONVERTER)
    program.chmod(0o755)
    done = _export(home, folder, "--gguf", path=program.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"loading {home.model}",
        "merging li-simpo-1",
        "saving 0.00 GB",
        f"model: {folder}",
        "converting it for llama.cpp",
        f"GGUF: {folder / 'li-simpo-1.gguf'}",
    ]
    assert json.loads((folder / adapters.CARD).read_text())["run"] == 1
    said = program.with_name(f"{program.name}.said").read_text().splitlines()
    assert said == [str(folder), "--outfile", str(folder / ".li-simpo-1.gguf")]
    assert [path.name for path in folder.glob("*gguf")] == ["li-simpo-1.gguf"]
    line = _refusal(_export(home, folder))
    assert line == f"prefanno: {folder} is there already, and not empty; name a new folder"


def test_without_a_converter_nothing_is_computed(home: Settings, tmp_path: Path) -> None:
    """Where none is on PATH, the names that are looked for and the cure are said, and nothing is made."""
    line = _refusal(_export(home, tmp_path / "out", "--gguf"))
    assert line.startswith("prefanno: none of convert_hf_to_gguf.py, convert-hf-to-gguf, llama-convert-hf-to-gguf is ")
    assert "https://github.com/ggml-org/llama.cpp" in line and not (tmp_path / "out").exists()


def test_an_unknown_adapter_is_one_line(home: Settings, tmp_path: Path) -> None:
    """A name that is not there is refused by name; so is an export that says no folder."""
    done = _run(home, "adapters", "export", "li-simpo-9", "--to", str(tmp_path / "out"))
    assert _refusal(done) == "prefanno: there is no adapter li-simpo-9"
    assert _run(home, "adapters", "export", "li-simpo-1").returncode == 2
