"""What the tests of the recipe share: rows, their files, and a tokenizer for templates written by hand."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from itertools import repeat
from pathlib import Path
from typing import Any

from prefanno import snapshot
from prefanno.prompting import ChatTemplate
from prefanno.rows import Mode, Row, writer
from prefanno.snapshot import Manifest
from prefanno.training.config import RunConfig, stages

PERSONA = "You are Li."
START = datetime.fromisoformat("2026-01-27T12:00:00")
SMALL = {"epochs": 1.0, "batch_size": 2}  # of every stage, where a test names nothing else
Thoughts = tuple[str | None, str | None]


def row(  # noqa: PLR0913 - the fields of a row, of which a test names one or two
    chosen: str | None,
    rejected: str | None,
    thoughts: Thoughts = (None, None),
    mode: Mode = "single",
    *,
    said: str = "Who are you?",
    context: Sequence[Any] = (),
    weight: float = 1.0,
    minute: int = 0,
) -> Row:
    """A row; `minute` is when the choice was made."""
    return Row(
        mode=mode,
        system_prompt=PERSONA,
        context=list(context),
        human_input=said,
        chosen=chosen,
        chosen_thinking=thoughts[0],
        rejected=rejected,
        rejected_thinking=thoughts[1],
        created_at=START + timedelta(minutes=minute),
        weight=weight,
    )


def prepared(
    folder: Path, model: Path, rows: Sequence[Row], asked: Sequence[dict[str, Any]] | None = None, **changes: Any
) -> RunConfig:
    """A run's folder, with its data and its configuration, as the server makes it; small enough for a test."""
    (folder / "data").mkdir(parents=True)
    with writer("sharegpt").writing(folder / "data", "li") as writing:
        writing.write(rows)
    files = snapshot.described(folder / "data", writing.counts)
    manifest = Manifest("sharegpt", "li", "unused", None, files, writing.losses)
    planned = [stage | SMALL | named for stage, named in zip(stages(manifest, asked), _named(asked), strict=False)]
    small: dict[str, Any] = {"lora": {"r": 4, "alpha": 8}, "max_length": 512}
    config = RunConfig("li", str(model), str(model), "li-simpo-1", planned, **{**small, **changes})
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    return config


def absolute(folder: Path, stage: dict[str, Any]) -> dict[str, Any]:
    """The stage with its file found from anywhere."""
    return stage | {"file": str(folder / stage["file"])}


def template(jinja: str) -> ChatTemplate:
    """A chat template over a tokenizer that takes each byte for a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise)  # type: ignore[no-untyped-call]
    tokenizer.chat_template = jinja
    return ChatTemplate.of(tokenizer)


def _named(asked: Sequence[dict[str, Any]] | None) -> Iterator[dict[str, Any]]:
    """The hyperparameters that each stage was asked with."""
    return (stage.get("hyperparameters", {}) for stage in asked) if asked is not None else repeat({})
