"""The recipe: one adapter from the choices in a run's folder, by TRL, with LoRA.

    python -P -m prefanno.training.recipe config.json            (in the run's folder; train.sh does this)
    python -P -m prefanno.training.recipe --check config.json    only look: the report as JSON on standard output

config.json ─▶ each stage: preflight ─▶ examples ─▶ trainer, watched by progress and guard ─▶ adapter/
                                                     └─▶ checkpoints/, from which it goes on where it finds some

It reads config.json and the exported files it names, and writes metrics.jsonl, summary.json and adapter/. Each row is
rendered with its own persona by `prompting.py`, so the model sees in training what it sees when it generates. It does
not touch the database or the server, and does not choose its hyperparameters: config.json holds them all.
"""

import json
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefanno.prompting import ChatTemplate
from prefanno.training.config import RunConfig
from prefanno.training.findings import FINDINGS, LEFT_OUT
from prefanno.training.recipe.examples import Example, held_out, scheduled, split
from prefanno.training.recipe.preflight import Checked, check, report

SUMMARY = Path("summary.json")


def main(arguments: list[str]) -> None:
    """Train, or only look."""
    warnings.simplefilter("ignore")  # the libraries' deprecations are no news to who reads the log
    *options, path = arguments
    config = RunConfig(**json.loads(Path(path).read_text()))
    if options == ["--check"]:
        print(json.dumps(looked_at(config)))
    else:
        train(config)


def looked_at(config: RunConfig) -> dict[str, Any]:
    """The report of all stages, with what the run will take."""
    from prefanno.training.recipe import base, estimate

    checked = _checked(config, ChatTemplate.of(base.tokenizer(config)))
    keys = _held_out(checked, config)
    stages = [report(stage, found, keys, config.seed) for stage, found in zip(config.stages, checked, strict=True)]
    return {"stages": stages, "estimate": estimate.of(config, stages), "ok": any(stage["examples"] for stage in stages)}


def train(config: RunConfig) -> None:
    """Train all stages, one after the other, on one adapter. Ends the program where no row is left to train on."""
    from prefanno.training.recipe import base, checkpoints, kept_back
    from prefanno.training.recipe.progress import say

    tokenizer = base.tokenizer(config)
    checked = _checked(config, ChatTemplate.of(tokenizer))
    keys = _held_out(checked, config)
    kept_back.write(checked, keys)
    for stage, found in zip(config.stages, checked, strict=True):
        say(f"{stage['method']}: {_counted(found)}")
    if not any(found.examples for found in checked):
        sys.exit("no row is left to train on: every row was left out, see the counts above")
    say(f"loading {config.base_model}" + (f", going on from {Path(config.start).name}" if config.start else ""))
    model = base.model(config)
    checkpoints.clear()
    done = checkpoints.finished(model)
    for number in [number for number, found in enumerate(checked, 1) if found.examples and number not in done]:
        if done:
            checkpoints.end_if_asked(max(done))
        done[number] = _stage(number, model, tokenizer, split(checked[number - 1].examples, keys), config)
        checkpoints.finish(number, model, done[number])
    summaries = list(done.values())
    SUMMARY.write_text(json.dumps({"stages": summaries}, ensure_ascii=False))
    if all(summary["guard"] and not summary["kept_step"] for summary in summaries):
        sys.exit(f"guard: {summaries[-1]['guard']}; no step was worth keeping")
    model.save_pretrained("adapter", selected_adapters=["default"])
    shutil.rmtree(checkpoints.FOLDER)
    say(f"adapter complete: {config.adapter}")


def _checked(config: RunConfig, template: ChatTemplate) -> list[Checked]:
    """Every stage's examples; none is longer than the model can read."""
    from prefanno.training.recipe import base

    longest = min(config.max_length, base.context_length(config))
    return [check(stage, template, longest) for stage in config.stages]


def _held_out(checked: Sequence[Checked], config: RunConfig) -> frozenset[str]:
    """What no stage trains on."""
    return held_out([found.examples for found in checked], config.held_out, config.seed)


def _stage(
    number: int, model: Any, tokenizer: Any, examples: tuple[list[Example], list[Example]], config: RunConfig
) -> dict[str, Any]:
    """Train one stage on the first of the examples; what came of it, measured at its start and at the kept step."""
    from transformers import PrinterCallback

    from prefanno.training.recipe import checkpoints
    from prefanno.training.recipe.evaluation import Evaluator
    from prefanno.training.recipe.progress import Progress, say, storable
    from prefanno.training.recipe.trainers import trainer

    stage = config.stages[number - 1]
    learnt, kept_back = examples
    order, folder = scheduled(learnt, stage["epochs"], config.seed), checkpoints.FOLDER / str(number)
    made, scorer = trainer(model, tokenizer, order, stage, config, folder)
    evaluator = Evaluator(made, learnt, kept_back, config.seed)
    progress = Progress(number, stage["method"], evaluator, scorer, guards=config.guard)
    saving = checkpoints.Checkpoints(number, progress, config.checkpoint_s)
    made.remove_callback(PrinterCallback)
    for callback in (progress, saving):
        made.add_callback(callback)
    if (latest := checkpoints.latest(number)) is not None:
        checkpoints.go_on(latest, progress)
        say(f"going on from step {latest.name.rpartition('-')[2]} of stage {number}")
    made.train(resume_from_checkpoint=str(latest) if latest else None)
    if saving.saved:
        checkpoints.end_if_asked(number)
    if progress.stopped is not None:
        progress.restore(model)
    scorer.remove()
    if "ref" in model.peft_config:  # TRL's copy of the adapter, which was the stage's reference
        model.delete_adapter("ref")
    kept = progress.kept if progress.stopped else made.state.global_step
    after = next((one for one in progress.evaluations if one.step == kept), progress.evaluations[-1])
    return {
        "method": stage["method"],
        "examples": len(learnt),
        "held_out": len(kept_back),
        "steps": made.state.global_step,
        "kept_step": kept,
        "guard": progress.stopped.text if progress.stopped else None,
        "before": storable(asdict(progress.evaluations[0])),
        "after": storable(asdict(after)),
    }


def _counted(checked: Checked) -> str:
    """How many examples are left, what was found in the rows, and what becomes of a stage that has none."""
    counts = "".join(
        f"; {count} {'left out: ' if FINDINGS[code][0] == LEFT_OUT else ''}{FINDINGS[code][1]}"
        for code, count in sorted(checked.counts().items())
    )
    emptied = "" if checked.examples else "; the stage is left out"
    return f"{len(checked.examples)} examples of {checked.rows} rows{counts}{emptied}"


if __name__ == "__main__":
    main(sys.argv[1:])
