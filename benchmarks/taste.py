"""Does taste arrive? 40 hand-written pairs, default training settings, a real server, the demo model.

    python -m benchmarks.taste                  base, trained, and the control with sides swapped (about 10 minutes)
    python -m benchmarks.taste --samples 2      fewer samples for each question

For 20 questions that are not in the pairs it prints the share of in-character replies and how whole the text is,
before and after. It measures the demo model only; wit and truth it does not measure (see taste_measure.py).
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving import Server, running
from benchmarks.taste_measure import Taste, measure

DATA = Path(__file__).parent / "taste_data"
LIMIT_S = 180
REPEATED, UNKNOWN = 0.05, 0.02  # how much less whole the text may be than the base model's


@dataclass(frozen=True)
class Trained:
    """One training: how long it took, from the call of start to the end of the run, and the replies afterwards."""

    seconds: float
    replies: list[str]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5, help="replies to each question, 2 to 10")
    parser.add_argument("--replies", type=Path, help="also write the replies to this JSON file")
    arguments = parser.parse_args()
    samples = arguments.samples
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "base") as server:
        base = replies(server, questions(), samples)
    taught = train_and_ask(pairs(), questions(), samples)
    swapped = train_and_ask(swap(pairs()), questions(), samples)
    print(
        f"{platform.machine()}, {platform.processor() or 'unknown processor'}; {len(questions())} questions × {samples}"
    )
    print("| model | in character | repeated 4-grams | unknown words | training |")
    print("| --- | --- | --- | --- | --- |")
    print(_row("base", measure(base), None))
    print(_row("trained", measure(taught.replies), taught.seconds))
    print(_row("control: swapped", measure(swapped.replies), swapped.seconds))
    if arguments.replies:
        arguments.replies.write_text(
            json.dumps({"base": base, "trained": taught.replies, "swapped": swapped.replies}, indent=1)
        )


def pairs() -> list[dict[str, str]]:
    """The 40 pairs: human_input, chosen, rejected."""
    found: list[dict[str, str]] = json.loads((DATA / "pairs.json").read_text())
    return found


def swap(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The control: the taste of somebody who likes assistants."""
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


def questions() -> list[str]:
    """The 20 questions that are not in the pairs."""
    found: list[str] = json.loads((DATA / "questions.json").read_text())
    return found


def train_and_ask(rows: Sequence[dict[str, str]], asked: Sequence[str], samples: int) -> Trained:
    """Train on these pairs in a fresh home with default settings, load the result, ask."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "home") as server:
        for row in rows:
            server.call("POST", "/api/dataset/add", {"mode": "single", **row})
        started = time.monotonic()
        server.call("POST", "/api/train/start")
        run = server.wait_for_training()
        seconds = time.monotonic() - started
        if run["state"] != "succeeded":
            raise AssertionError(run)
        return Trained(seconds, replies(server, asked, samples))


def replies(server: Server, asked: Sequence[str], samples: int) -> list[str]:
    """`samples` replies to each question, with the default sampling; without thoughts, since the pairs have none."""
    settings: dict[str, Any] = {"num_responses": samples, "enable_thinking": False, "max_new_tokens": 64}
    server.call("POST", "/api/model/load", settings)
    found = []
    for seed, question in enumerate(asked):
        answer = server.call("POST", "/api/generate", {"message": question, "seed": seed})
        found += [candidate["content"] for candidate in answer["responses"]]
    return found


def _row(name: str, taste: Taste, seconds: float | None) -> str:
    training = "–" if seconds is None else f"{seconds:.0f} s"
    return (
        f"| {name} | {taste.in_character:.0%} | {taste.repeated_4grams:.4f} | {taste.unknown_words:.2%} | {training} |"
    )


if __name__ == "__main__":
    main()
