"""Does taste arrive? 40 hand-written pairs, a real server, the demo model, with the settings that a person gets.

    python -m benchmarks.taste                  base, trained by default, and the control with sides swapped
    python -m benchmarks.taste methods          each method at its defaults
    python -m benchmarks.taste collapse         pure SimPO on 32 pairs, which breaks the model, with and without guard
    python -m benchmarks.taste --samples 2      fewer samples for each question

For 20 questions that are not in the pairs it prints the share of in-character replies and how whole the text is, and
for the four pairs that the run holds out how many it gets right and how likely the chosen replies are (nats for each
token), before and after. It measures the demo model only; wit and truth it does not measure (see taste_measure.py).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import direct
from benchmarks.preference import Scores, held_out_of, scored
from benchmarks.serving import Server, running
from benchmarks.taste_measure import measure
from benchmarks.training_data import pairs, questions, swap

LIMIT_S = 180
REPEATED, UNKNOWN = 0.05, 0.02  # how much less whole the text may be than the base model's
Plan = Mapping[str, Any]
USUAL: Plan = {}
METHODS: Mapping[str, Plan] = {
    method: {"stages": [{"method": method, "dataset": "preference"}]}
    for method in ("sft", "simpo", "dpo", "orpo", "kto")
}
PURE = {"learning_rate": 2e-4, "beta": 2.0, "nll_weight": 0.0, "epochs": 8.0}
COLLAPSE: Mapping[str, Plan] = {
    f"pure SimPO, guard {'on' if guard else 'off'}": {
        "stages": [{"method": "simpo", "hyperparameters": PURE}],
        "held_out": 0.0,
        "guard": guard,
    }
    for guard in (True, False)
}


@dataclass(frozen=True)
class Trained:
    """One training: how long it took, from the call of start to the end of the run, and what came of it."""

    seconds: float
    replies: list[str]
    reason: str | None
    before: Scores
    after: Scores


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("usual", "methods", "collapse"), default="usual")
    parser.add_argument("--samples", type=int, default=5, help="replies to each question, 2 to 10")
    parser.add_argument("--replies", type=Path, help="also write the replies to this JSON file")
    options = parser.parse_args()
    print(f"{direct.machine()}; {len(questions())} questions × {options.samples}")
    print(
        "| model | in character | repeated 4-grams | unknown words | held-out accuracy | chosen log-prob. | training |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "base") as server:
        said = {"base": replies(server, questions(), options.samples)}
    print(_row("base", said["base"], None), flush=True)
    for name, plan in {"usual": {"trained": USUAL}, "methods": METHODS, "collapse": COLLAPSE}[options.what].items():
        given = pairs()[:32] if options.what == "collapse" else pairs()
        said[name] = _print(name, train_and_ask(given, questions(), options.samples, plan))
    if options.what == "usual":
        said["swapped"] = _print("control: swapped", train_and_ask(swap(pairs()), questions(), options.samples))
    if options.replies:
        options.replies.write_text(json.dumps(said, indent=1))


def _print(name: str, trained: Trained) -> list[str]:
    print(_row(name, trained.replies, trained), flush=True)
    if trained.reason:
        print(f"{name}: {trained.reason}", flush=True)
    return trained.replies


def train_and_ask(rows: Sequence[dict[str, str]], asked: Sequence[str], samples: int, plan: Plan = USUAL) -> Trained:
    """Train on these pairs in a fresh home, load the result, ask."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "home") as server:
        for row in rows:
            server.call("POST", "/api/dataset/add", {"mode": "single", **row})
        started = time.monotonic()
        server.call("POST", "/api/train/start", plan)
        run = server.wait_for_training()
        seconds = time.monotonic() - started
        if run["state"] != "succeeded":
            raise AssertionError(run)
        before, after = scored(held_out_of(server.home / "runs" / "1"), server.home / "outputs" / run["adapter"])
        return Trained(seconds, replies(server, asked, samples), run["reason"], before, after)


def replies(server: Server, asked: Sequence[str], samples: int) -> list[str]:
    """`samples` replies to each question, with the default sampling; without thoughts, since the pairs have none."""
    settings: dict[str, Any] = {"num_responses": samples, "enable_thinking": False, "max_new_tokens": 64}
    server.call("POST", "/api/model/load", settings)
    found = []
    for seed, question in enumerate(asked):
        answer = server.call("POST", "/api/generate", {"message": question, "seed": seed})
        found += [candidate["content"] for candidate in answer["responses"]]
    return found


def _row(name: str, said: Sequence[str], trained: Trained | None) -> str:
    taste = measure(said)
    text = f"| {name} | {taste.in_character:.0%} | {taste.repeated_4grams:.4f} | {taste.unknown_words:.2%} | "
    if trained is None or not trained.before:
        return text + ("– | – | – |" if trained is None else f"– | – | {trained.seconds:.0f} s |")
    accuracies = [statistics.fmean(good > bad for good, bad in scores) for scores in (trained.before, trained.after)]
    chosen = [statistics.fmean(good for good, _ in scores) for scores in (trained.before, trained.after)]
    held_out = f"{accuracies[0]:.0%} → {accuracies[1]:.0%} | {chosen[0]:.2f} → {chosen[1]:.2f}"
    return f"{text}{held_out} | {trained.seconds:.0f} s |"


if __name__ == "__main__":
    main()
