"""Databases of many annotations, for benchmarks: filled by prefanno's own code, with text that looks like text."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from spellchecker import SpellChecker
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import history
from prefanno.annotation.dataset import to_annotation
from prefanno.db import upgrade
from prefanno.db.engine import Database
from prefanno.db.models import now
from prefanno.rows import Row
from prefanno.settings import Settings

RARE = {"English": "lighthouse", "Chinese": "灯塔"}  # each in one row of a thousand, and nowhere else
BATCH = 2_000  # annotations in one transaction


def fill(home: Path, size: int) -> None:
    """Make a home with this many annotations, half of them English, half Chinese."""
    settings = Settings(home=home)
    settings.data.mkdir(parents=True)
    upgrade.upgrade(settings.database_file)
    asyncio.run(_fill(settings.database_file, size))


async def _fill(path: Path, size: int) -> None:
    words = random.Random(0)
    async with Database.open(path) as database:
        for start in range(0, size, BATCH):
            numbers = range(start, min(start + BATCH, size))

            async def add(session: AsyncSession, numbers: range = numbers) -> None:
                await history.add(session, [to_annotation("li", _row(words, number)) for number in numbers], "import")

            await database.write(add)


def _row(words: random.Random, number: int) -> Row:
    """Of each thousand rows, one English and one Chinese hold the rare word."""
    texts = pair(words, ("English", "Chinese")[number % 2])
    if number % 1000 in (500, 501):
        texts["chosen"] += f" {RARE[('English', 'Chinese')[number % 2]]}."
    return Row(
        **texts, system_prompt="You are Li.", context=[], created_at=now(), chosen_thinking=None, rejected_thinking=None
    )


def pair(words: random.Random, language: str = "English") -> dict[str, Any]:
    """A preference of usual length: a question of about 10 words, two replies of about 30."""
    texts = {"human_input": 10, "chosen": 30, "rejected": 30}
    return {"mode": "single"} | {name: _text(words, language, length) for name, length in texts.items()}


def _text(words: random.Random, language: str, length: int) -> str:
    vocabulary, weights = _vocabulary(language)
    chosen = words.choices(vocabulary, cum_weights=weights, k=words.randint(length // 2, length * 3 // 2))
    return (" " if language == "English" else "").join(chosen)


@cache
def _vocabulary(language: str) -> tuple[Sequence[str], Sequence[float]]:
    """Words with their summed frequencies; of Chinese, 3,000 characters as frequent as Zipf's law has them."""
    if language == "English":
        counted = SpellChecker(language="en").word_frequency.dictionary
        found = {word: float(count) for word, count in counted.items() if word != RARE["English"]}
    else:
        found = {chr(0x4E00 + rank * 7 % 20_000): 1 / rank for rank in range(1, 3_000)}
        for character in RARE["Chinese"]:
            found.pop(character, None)
    return list(found), list(itertools.accumulate(found.values()))
