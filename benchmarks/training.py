"""What a step of training costs, against a bare TRL script and LLaMA-Factory on the same rows, seed and settings.

    PAIRS_JSON=… python -m benchmarks.training [rounds] [steps]     SimPO, LoRA r=16, batch 4, at most 512 tokens
    LLAMA_FACTORY=/its/venv/bin/python …                            with LLaMA-Factory (pip install llamafactory)

Each runs in a process of its own, in turn; prefanno and LLaMA-Factory also with activation checkpointing. Time for a
step leaves evaluations and probes out; the peak of memory is the whole process's. The losses of the first step are
printed, since they must agree. Without PAIRS_JSON it takes the hand-written pairs of the taste benchmark, which are
short.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks import direct
from benchmarks.training_data import LONGEST, given_pairs, rows, written
from prefanno.prompting import ChatTemplate
from prefanno.training.recipe.examples import Example, held_out, scheduled, split
from prefanno.training.recipe.preflight import check

RECIPE = (sys.executable, "-P", "-m", "prefanno.training.recipe", "config.json")
BARE = (sys.executable, "-m", "benchmarks.bare_trl", "bare.json")
CHECKPOINTING = ", checkpointing"


@dataclass(frozen=True)
class Run:
    """One training: seconds of each step, from the start of the process to three moments, peak memory, first loss."""

    steps: list[float]
    first_line: float
    first_step: float
    usable: float
    memory_mb: float
    loss: float


def main() -> None:
    """Print the table."""
    rounds, steps = (int(option) for option in [*sys.argv[1:], "5", "6"][:2])
    print(direct.machine())
    done: dict[str, list[Run]] = {name: [] for name in ("bare TRL", "prefanno", "prefanno" + CHECKPOINTING)}
    if factory := os.environ.get("LLAMA_FACTORY"):
        done |= {"LLaMA-Factory": [], "LLaMA-Factory" + CHECKPOINTING: []}
    for number in range(rounds):
        for name, runs in done.items():
            with tempfile.TemporaryDirectory() as folder:
                _prepare(Path(folder), steps, checkpointing=name.endswith(CHECKPOINTING))
                runs.append(_run(name, Path(folder), factory))
            print(f"round {number + 1}, {name}: {runs[-1]}", file=sys.stderr, flush=True)
    print(
        "| SimPO, batch 4 | s a step | to bare TRL | peak MB | to bare TRL "
        "| first line, s | first step, s | usable, s | loss |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, runs in done.items():
        print(_row(name, runs, done["bare TRL"]))


def _prepare(folder: Path, steps: int, *, checkpointing: bool) -> None:
    """The run's folder for the recipe, and in bare.json the same examples in the same order for the others."""
    config = written(folder, rows(given_pairs()))
    from prefanno.training.recipe import base

    template = ChatTemplate.of(base.tokenizer(config))
    stage = config.stages[0]
    usable = check(stage | {"file": str(folder / stage["file"])}, template, LONGEST).examples
    learnt, _ = split(usable, held_out([usable], config.held_out, config.seed))
    epochs = steps * stage["batch_size"] / len(learnt)
    stage["epochs"] = epochs
    config = replace(config, activation_checkpointing=checkpointing)
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    order = scheduled(learnt, epochs, config.seed)
    bare = {
        "model": config.base_model_path,
        "stage": stage,
        "lora": config.lora,
        "rows": [_texts(one) for one in order],
    }
    (folder / "bare.json").write_text(json.dumps(bare | {"max_length": LONGEST}))


def _texts(example: Example) -> dict[str, str]:
    return {"prompt": example.prompt, **{side: reply.text for side, reply in example.sides.items()}}


def _run(name: str, folder: Path, factory: str | None) -> Run:
    if name.startswith("prefanno"):
        return _ours(folder)
    options = ["--checkpointing"] * name.endswith(CHECKPOINTING)
    command = BARE if name == "bare TRL" else (str(factory), "-m", "benchmarks.llama_factory", "bare.json", *options)
    seen, usable = _timed(command, folder)
    told = json.loads((folder / "bare_metrics.json").read_text())
    return Run(told["seconds"], seen["any"], seen["step"], usable, told["memory_mb"], told["loss"])


def _ours(folder: Path) -> Run:
    seen, usable = _timed(RECIPE, folder)
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if entry["kind"] == "step"]
    seconds, memory = [one["seconds"] for one in steps], steps[-1]["memory_mb"]
    return Run(seconds, seen["any"], seen["step"], usable, memory, steps[0]["loss"])


def _timed(command: Sequence[str], folder: Path) -> tuple[dict[str, float], float]:
    """When the first line and the first step were printed, and when the adapter was there."""
    started = time.monotonic()
    seen: dict[str, float] = {}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            seen.setdefault("any", time.monotonic() - started)
            if " step 1/" in line or "'loss'" in line:
                seen.setdefault("step", time.monotonic() - started)
    if process.returncode:
        raise AssertionError("".join(lines))
    return seen, time.monotonic() - started


def _row(name: str, runs: Sequence[Run], peer: Sequence[Run]) -> str:
    step = statistics.median(statistics.median(run.steps[1:]) for run in runs)
    memory = statistics.median(run.memory_mb for run in runs)
    their_step = statistics.median(statistics.median(run.steps[1:]) for run in peer)
    their_memory = statistics.median(run.memory_mb for run in peer)
    moments = [
        statistics.median(getattr(run, moment) for run in runs) for moment in ("first_line", "first_step", "usable")
    ]
    figures = f"{step:.2f} | {step / their_step:.2f} | {memory:.0f} | {memory / their_memory:.2f}"
    return f"| {name} | {figures} | {' | '.join(f'{moment:.1f}' for moment in moments)} | {runs[0].loss:.4f} |"


if __name__ == "__main__":
    main()
