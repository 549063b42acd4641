"""Rows of every kind, and the formats that hold them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from hypothesis import strategies as st

from exporters import openai, sharegpt, spreadsheet, trl, trl_parquet
from exporters.values import HEAVIEST
from prefanno import text
from prefanno.prompting import Message
from prefanno.rows import Fault, Mode, Row

FORMATS: dict[str, ModuleType] = {
    "sharegpt": sharegpt,
    "trl": trl,
    "trl-parquet": trl_parquet,
    "openai": openai,
    "csv": spreadsheet,
}
ENDINGS = {"sharegpt": ".json", "trl": ".trl.jsonl", "trl-parquet": ".trl.parquet"}  # of formats with three files
NOW = datetime.fromisoformat("2026-01-27T12:00:00.123456")

# Words that look like the formats themselves, in the mouths of users and characters.
WORDS = [
    *("<think>\n", "\n</think>\n\n", "<think>\nT\n</think>\n\nA", "<think>", "</think>", "human", "gpt", "assistant"),
    *(
        "\n",
        "\r\n",
        "\r",
        "\t",
        "\v",
        "\f",
        "\x1c",
        "\x85",
        "\u2028",
        "\u2029",
        "\ufeff",
        "\u200b",
        "\x7f",
        " ",
        "\u3000",
    ),
    *(
        '"',
        '""',
        "'",
        "''",
        "\\",
        "\\n",
        "\\u0000",
        ",",
        ";",
        "[",
        "]",
        "{}",
        "null",
        "NaN",
        "None",
        "true",
        "1",
        "-1e9",
    ),
    *("=1+1", "+1", "-1", "@SUM(A1)", "'=1", "＝１", "＋", "－", "＠", "=cmd|' /C calc'!A0", "2026-01-27T12:00:00"),
    *("🦊", "👩‍👩‍👧", "谜语", "שלום", "مرحبا", "\u202e", "e\u0301", "\u0e33", "\ufdfa", "\U0010ffff", "\ud7ff", "a"),
]
TEXTS = (
    st.lists(st.sampled_from(WORDS) | st.text(max_size=5), min_size=1, max_size=5)
    .map("".join)
    .filter(lambda content: text.fault(content) is None)
)
THOUGHTS = st.none() | TEXTS
WEIGHTS = st.just(1.0) | st.floats(min_value=0, exclude_min=True, max_value=HEAVIEST) | st.sampled_from([1 / 3, 0.5])


def row(chosen: str | None = "I am Li.", rejected: str | None = "An AI.", **changed: Any) -> Row:
    """A pair, but for what is changed."""
    plain = Row("single", "You are Li.", [], "Who are you?", chosen, None, rejected, None, NOW)
    return replace(plain, **changed)


def talk(*contents: str) -> list[Message]:
    """Earlier turns, the last one the assistant's."""
    first = len(contents) % 2  # an odd number begins with the assistant
    return [{"role": "assistant" if (at + first) % 2 else "user", "content": said} for at, said in enumerate(contents)]


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Any row that prefanno can hold."""
    mode: Mode = draw(st.sampled_from(("single", "multi")))
    sides = st.sampled_from(("both", "chosen", "rejected") if mode == "single" else ("both", "chosen"))
    which = draw(sides)
    chosen, rejected = (draw(TEXTS) if which in ("both", side) else None for side in ("chosen", "rejected"))
    return Row(
        mode=mode,
        system_prompt=draw(TEXTS),
        context=talk(*draw(st.lists(TEXTS, max_size=4))),
        human_input=draw(TEXTS),
        chosen=chosen,
        chosen_thinking=None if chosen is None else draw(THOUGHTS),
        rejected=rejected,
        rejected_thinking=None if rejected is None else draw(THOUGHTS),
        created_at=draw(st.datetimes()),
        weight=draw(WEIGHTS),
    )


def paired(one: Row) -> bool:
    """Whether it has both sides."""
    return one.chosen is not None and one.rejected is not None


def by_dataset(written: Sequence[Row]) -> dict[str, list[Row]]:
    """What each of the three datasets holds."""
    return {
        "preference": [one for one in written if paired(one)],
        "roleplay": [one for one in written if one.mode == "multi"],
        "unpaired": [one for one in written if one.mode == "single" and not paired(one)],
    }


def write(form: str, folder: Path, *batches: Sequence[Row]) -> Any:
    """Write the rows; the writer, whose counts and losses can be read."""
    with FORMATS[form].writing(folder, "li") as writer:
        for batch in batches:
            writer.write(batch)
    return writer


def read(form: str, file: Path) -> list[Row]:
    """The rows of a file without faults."""
    return [good(found) for _, found in found_in(form, file)]


def found_in(form: str, file: Path) -> Iterator[tuple[int, Row | Fault]]:
    """What the format's reader finds."""
    found: Iterator[tuple[int, Row | Fault]] = FORMATS[form].reading(file)
    return found


def good(found: Row | Fault) -> Row:
    """The row. Raises the fault."""
    if isinstance(found, Fault):
        raise found
    return found
