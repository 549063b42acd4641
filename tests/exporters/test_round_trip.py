"""What a format writes, its reader gives back: every row, every character."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefanno.rows import Row
from tests.exporters.written import ENDINGS, FORMATS, NOW, WORDS, by_dataset, paired, read, row, rows, talk, write
from tests.properties import unhurried

# Each word alone in every place, each kind of row.
EVERY_WORD = [
    row(
        word,
        word,
        system_prompt=f"x{word}",
        human_input=f"{word}x",
        context=talk(f"x{word}"),
        chosen_thinking=f"x{word}",
    )
    for word in (word if word.strip() else f"x{word}x" for word in WORDS)
]
EVERY_KIND = [
    row(),
    row(rejected=None),
    row(None),
    row(mode="multi"),
    row(rejected=None, mode="multi", context=talk("Hi", "Ho")),
    row(context=talk("Welcome!"), chosen_thinking="一\n二", rejected_thinking='</think> "quoted"'),
    row("<think>\nnot mine\n</think>\n\nbut said", "<think>\n"),
    row(weight=1 / 3, created_at=NOW.replace(microsecond=0)),
]


@unhurried
@given(st.lists(rows(), max_size=4))
@example(EVERY_KIND)
@example(EVERY_WORD)
@pytest.mark.parametrize("form", ["sharegpt", "trl"])
def test_three_datasets_hold_every_row(tmp_path_factory: pytest.TempPathFactory, form: str, written: list[Row]) -> None:
    """Each file gives back the rows of its dataset, equal and in their order; nothing is lost, and counts are true."""
    _three_datasets_hold(form, tmp_path_factory.mktemp("files"), written)


@settings(unhurried, max_examples=10)  # each file is read by a process of its own
@given(st.lists(rows(), max_size=20))
@example(EVERY_KIND)
@example(EVERY_WORD)
def test_parquet_holds_every_row(tmp_path_factory: pytest.TempPathFactory, written: list[Row]) -> None:
    """The same for parquet."""
    _three_datasets_hold("trl-parquet", tmp_path_factory.mktemp("files"), written)


def _three_datasets_hold(form: str, folder: Path, written: list[Row]) -> None:
    writer = write(form, folder, written[:2], written[2:])
    for dataset, expected in by_dataset(written).items():
        name = f"li_{dataset}{ENDINGS[form]}"
        assert read(form, folder / name) == expected
        assert writer.counts[name] == len(expected)
    assert writer.losses == {}


@unhurried
@given(st.lists(rows(), max_size=4))
@example(EVERY_KIND)
@example(EVERY_WORD)
def test_a_spreadsheet_holds_every_row(tmp_path_factory: pytest.TempPathFactory, written: list[Row]) -> None:
    """One file gives back all rows, equal and in their order."""
    folder = tmp_path_factory.mktemp("files")
    writer = write("csv", folder, written)
    assert read("csv", folder / "li.csv") == written
    assert (writer.counts, writer.losses) == ({"li.csv": len(written)}, {})


@unhurried
@given(st.lists(rows(), max_size=4))
@example(EVERY_KIND)
@example(EVERY_WORD)
def test_openai_holds_pairs_and_says_what_it_lost(tmp_path_factory: pytest.TempPathFactory, written: list[Row]) -> None:
    """Pairs come back but for mode, weight, time and misread thoughts, and `losses` is the number of rows with each."""
    folder = tmp_path_factory.mktemp("files")
    writer = write("openai", folder, written)
    pairs = [one for one in written if paired(one)]
    found = read("openai", folder / "li_preference.openai.jsonl")
    lost: Counter[str] = Counter()
    for before, after in zip(pairs, found, strict=True):
        lost.update(name for name in ("mode", "weight", "created_at") if getattr(before, name) != getattr(after, name))
        if _replies(before) != _replies(after):
            lost["thinking"] += 1
        else:
            assert replace(after, mode=before.mode, weight=before.weight, created_at=before.created_at) == before
    left_out = [one for one in written if not paired(one)]
    lost.update("conversation" if one.mode == "multi" else "unpaired" for one in left_out)
    assert writer.losses == lost
    assert writer.counts == {"li_preference.openai.jsonl": len(pairs)}


@unhurried
@given(st.lists(rows(), max_size=3))
@example(EVERY_KIND)
@pytest.mark.parametrize("form", FORMATS)
def test_the_same_rows_make_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, form: str, written: list[Row]
) -> None:
    """Files hold nothing of when they were written, and nothing of the batches in which the rows came."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    write(form, first, written)
    write(form, second, *([one] for one in written))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir()) != []
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_the_examples_are_of_every_kind() -> None:
    """Control: the rows that always run fill all datasets, with and without a rejected reply, a weight, a thought."""
    assert all(by_dataset(EVERY_KIND).values())
    assert {one.rejected is None for one in EVERY_KIND if one.mode == "multi"} == {True, False}
    assert any(one.weight != 1 for one in EVERY_KIND) and any(one.chosen_thinking for one in EVERY_KIND)


@pytest.mark.parametrize("form", FORMATS)
def test_long_texts_come_back(tmp_path: Path, form: str) -> None:
    """The longest row that the API takes is read back, many of them too."""
    long = "谜" * 340_000  # a body of 1 MiB
    written = [row(f"{long}{at}", f"{at}", context=talk(long)) for at in range(5)]
    writer = write(form, tmp_path, written)
    (file,) = [tmp_path / name for name, count in writer.counts.items() if count]
    assert [(one.chosen, one.context) for one in read(form, file)] == [(one.chosen, one.context) for one in written]


@pytest.mark.parametrize("letter", ["谜", '"', "\n", "\x01", "🦊"])
@pytest.mark.parametrize("form", FORMATS)
def test_the_longest_row_comes_back(tmp_path: Path, form: str, letter: str) -> None:
    """A body of 1 MiB each for the persona, the earlier turns, the question and the thought, whatever they hold."""
    long = letter * (((1 << 20) - 100) // len(json.dumps(letter, ensure_ascii=False).encode()[1:-1]))
    written = row(
        system_prompt=f"a{long}", context=talk(f"a{long}", "b"), human_input=f"a{long}", chosen_thinking=f"a{long}b"
    )
    writer = write(form, tmp_path, [written])
    (file,) = [tmp_path / name for name, count in writer.counts.items() if count]
    (found,) = read(form, file)
    assert (found.system_prompt, found.context, found.human_input) == (f"a{long}", written.context, written.human_input)
    assert (found.chosen, found.chosen_thinking) == (written.chosen, written.chosen_thinking)


def _replies(one: Row) -> tuple[str | None, ...]:
    return one.chosen, one.chosen_thinking, one.rejected, one.rejected_thinking
