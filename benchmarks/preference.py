"""Does training generalize? Real pairs, cross-validated: the margin and the chosen replies on pairs that were held out.

    PAIRS_JSON=… python -m benchmarks.preference [method] [--set name=value …] [--seeds 3] [--folds 4] [--scores file]

The pairs that fit 512 tokens are split into folds by prompt. For each seed and fold an adapter is trained on the others
by the recipe, with the defaults or what --set says, and the pairs of the fold are scored with and without it. Printed
are the mean change of the margin (chosen − rejected, nats for each token) with a 95 % interval by a bootstrap over the
pairs, each with the mean of its seeds, and that of the chosen replies.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import direct
from benchmarks.training_data import LONGEST, given_pairs, rows, written
from prefanno.prompting import ChatTemplate
from prefanno.rows import Row
from prefanno.training.config import RunConfig, asked
from prefanno.training.recipe.examples import Example, held_out, split
from prefanno.training.recipe.preflight import check

DRAWS = 10_000
Scores = list[tuple[float, float]]  # chosen and rejected, nats for each token


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", nargs="?", default="simpo")
    parser.add_argument("--set", dest="values", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--scores", type=Path, default=Path(os.devnull), help="keep them in this file, to go on later")
    options = parser.parse_args()
    print(direct.machine())
    stages = asked([options.method], options.values)
    given = fitting(rows(given_pairs()))
    folds = folded(given, options.folds)
    text = options.scores.read_text() if options.scores.exists() else ""
    kept: dict[str, tuple[Scores, Scores]] = json.loads(text or "{}")
    changes: dict[int, list[tuple[float, float]]] = {id(row): [] for row in given}
    for seed, (number, fold) in product(range(options.seeds), enumerate(folds, 1)):
        name = f"seed {seed}, fold {number}"
        if name not in kept:
            started = time.monotonic()
            learnt = [row for other in folds if other is not fold for row in other]
            kept[name] = _trained(learnt, fold, stages, seed)
            options.scores.write_text(json.dumps(kept))
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        before, after = kept[name]
        print(f"{name}: {_means(before)} → {_means(after)}", file=sys.stderr, flush=True)
        for row, (chosen, rejected), (now, worse) in zip(fold, before, after, strict=True):
            changes[id(row)].append(((now - worse) - (chosen - rejected), now - chosen))
    print(f"| {options.method} {' '.join(options.values)}, {len(given)} pairs | change | 95 % interval |")
    print("| --- | --- | --- |")
    for part, name in enumerate(("margin", "chosen log-probability")):
        values = [statistics.fmean(one[part] for one in each) for each in changes.values()]
        low, high = interval(values)
        print(f"| {name} | {statistics.fmean(values):+.4f} | {low:+.4f} to {high:+.4f} |")


def fitting(given: Sequence[Row]) -> list[Row]:
    """The rows that preflight leaves."""
    with tempfile.TemporaryDirectory() as folder:
        left = {tuple(reply.content for reply in one.sides.values()) for one in _examples(Path(folder), given)}
    return [row for row in given if (row.chosen, row.rejected) in left]


def folded(given: Sequence[Row], folds: int) -> list[list[Row]]:
    """Into folds, so that no prompt is in two of them."""
    prompts = list(dict.fromkeys((row.human_input, str(row.context)) for row in given))
    random.Random(0).shuffle(prompts)
    of = {prompt: place % folds for place, prompt in enumerate(prompts)}
    return [[row for row in given if of[row.human_input, str(row.context)] == fold] for fold in range(folds)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Of the mean, by bootstrap."""
    dice = random.Random(0)
    means = sorted(statistics.fmean(dice.choices(values, k=len(values))) for _ in range(DRAWS))
    return means[int(DRAWS * 0.025)], means[int(DRAWS * 0.975)]


def _trained(learnt: Sequence[Row], fold: Sequence[Row], stages: Any, seed: int) -> tuple[Scores, Scores]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(folder / "run", learnt, stages)
        config = json.loads((folder / "run" / "config.json").read_text())
        (folder / "run" / "config.json").write_text(json.dumps(config | {"seed": seed}))
        command = [sys.executable, "-P", "-m", "prefanno.training.recipe", "config.json"]
        done = subprocess.run(command, cwd=folder / "run", capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(done.stdout + done.stderr)
        return scored(_examples(folder / "fold", fold), folder / "run" / "adapter")


def held_out_of(run: Path) -> list[Example]:
    """The pairs that a run on the preference dataset holds out, whatever its method."""
    from prefanno.training.recipe import base

    config = RunConfig(**json.loads((run / "config.json").read_text()))
    stage = {"method": "simpo", "dataset": "preference", "file": str(run / config.stages[0]["file"])}
    examples = check(stage, ChatTemplate.of(base.tokenizer(config)), config.max_length).examples
    return split(examples, held_out([examples], config.held_out, config.seed))[1]


def scored(examples: Sequence[Example], adapter: Path) -> tuple[Scores, Scores]:
    """Of the base model, and with the adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from prefanno.training.recipe import base

    loaded = AutoModelForCausalLM.from_pretrained(direct.demo(), dtype=base.dtype())
    model: Any = PeftModel.from_pretrained(loaded, adapter).eval()

    def score(prompt: list[int], reply: list[int]) -> float:
        logits = model(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1].float()
        return float(logits.log_softmax(dim=1).gather(1, torch.tensor(reply)[:, None]).mean())

    def scores() -> Scores:
        sides = [(one.sides["chosen"].ids, one.sides["rejected"].ids) for one in examples]
        return [
            (score(one.prompt_ids, good), score(one.prompt_ids, bad))
            for one, (good, bad) in zip(examples, sides, strict=True)
        ]

    with torch.no_grad():
        after = scores()
        with model.disable_adapter():
            return scores(), after


def _examples(folder: Path, given: Sequence[Row]) -> list[Example]:
    from prefanno.training.recipe import base

    config = written(folder, given)
    stage = config.stages[0]
    template = ChatTemplate.of(base.tokenizer(config))
    return check(stage | {"file": str(folder / stage["file"])}, template, LONGEST).examples


def _means(scores: Scores) -> str:
    chosen, rejected = (statistics.fmean(pair[side] for pair in scores) for side in (0, 1))
    return f"chosen {chosen:.3f}, margin {chosen - rejected:.3f}"


if __name__ == "__main__":
    main()
