"""The pairs that the benchmarks of training learn from, as rows and in a run's folder."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import direct
from prefanno import snapshot
from prefanno.rows import Row, writer
from prefanno.snapshot import Manifest
from prefanno.training.config import LORA, RunConfig, stages

DATA = Path(__file__).parent / "taste_data"
LONGEST = 512  # tokens of prompt and reply


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


def rows(source: Sequence[dict[str, Any]]) -> list[Row]:
    """Pairs of ShareGPT or of the taste benchmark as rows."""
    return [_row_of(entry) for entry in source]


def given_pairs() -> list[dict[str, Any]]:
    """The pairs of PAIRS_JSON, else the hand-written ones."""
    path = os.environ.get("PAIRS_JSON")
    found: list[dict[str, Any]] = json.loads(Path(path).read_text()) if path else pairs()
    return found


def written(folder: Path, given: Sequence[Row], asked: Sequence[dict[str, Any]] | None = None) -> RunConfig:
    """The rows in a run's folder, with the configuration of a run on them, as the server makes it."""
    (folder / "data").mkdir(parents=True)
    with writer("sharegpt").writing(folder / "data", "li") as writing:
        writing.write(given)
    files = snapshot.described(folder / "data", writing.counts)
    manifest = Manifest("sharegpt", "li", "", None, files, writing.losses)
    base = str(direct.demo())
    config = RunConfig("li", "demo", base, "li-simpo-1", stages(manifest, asked), LORA, max_length=LONGEST)
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    return config


def _row_of(entry: dict[str, Any]) -> Row:
    made = datetime.fromisoformat("2026-01-01T00:00:00")
    if "conversations" not in entry:
        said, chosen, rejected = entry["human_input"], entry["chosen"], entry["rejected"]
        return Row("single", direct.CONFIG.system_prompt, [], said, chosen, None, rejected, None, made)
    *earlier, last = entry["conversations"]
    roles = {"human": "user", "gpt": "assistant"}
    context = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in earlier if turn["from"] in roles]
    system = entry.get("system") or direct.CONFIG.system_prompt
    chosen, rejected = entry["chosen"]["value"], entry["rejected"]["value"]
    return Row("single", system, context, last["value"], chosen, None, rejected, None, made)  # type: ignore[arg-type]
