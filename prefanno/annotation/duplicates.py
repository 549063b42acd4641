"""Which rows say the same: word for word, or but for what a reader would pass over. Pure; no database."""

import re
import unicodedata
from hashlib import blake2b

import orjson

from prefanno.rows import Row

# Vowels of Hindi, Thai or Arabic are marks, which \w leaves out; variation selectors are marks that belong to emoji.
MARKS = "".join(
    chr(code)
    for code in range(0x10000)
    if unicodedata.category(chr(code)) in ("Mn", "Mc") and not 0xFE00 <= code <= 0xFE0F  # noqa: PLR2004 - as said
)
WORDLESS = re.compile(rf"[^\w{MARKS}]+|_+")

# Normalising sorts each run of marks, in quadratic time: one row could hold up the server. Unicode's Stream-Safe Text
# Format (UAX #15) breaks long runs by a combining grapheme joiner.
NON_STARTERS = "".join(
    character
    for character in map(chr, range(0x20000))
    if unicodedata.combining(unicodedata.normalize("NFKD", character)[0])
)
LONG_RUN = re.compile(f"[{NON_STARTERS}]{{30}}(?=[{NON_STARTERS}])")


def exact(row: Row) -> bytes:
    """The same for rows that are equal word for word; when they were made and what they weigh is not asked."""
    sides = (row.chosen, row.chosen_thinking, row.rejected, row.rejected_thinking)
    said = [row.mode, row.system_prompt, row.context, row.human_input, *sides]
    return blake2b(orjson.dumps(said), digest_size=16).digest()


def near(row: Row) -> bytes:
    """The same for rows whose turns and replies differ only in case, width, punctuation and white space."""
    turns = [turn["content"] for turn in row.context]
    said = [normalised(text) for text in (*turns, row.human_input, row.chosen or "", row.rejected or "")]
    return blake2b(orjson.dumps(said), digest_size=16).digest()


def normalised(text: str) -> str:
    """Letters with their marks, and digits, in compatibility form (NFKC), case folded; without any, the text itself."""
    stream_safe = LONG_RUN.sub("\\g<0>\u034f", text)
    return WORDLESS.sub("", unicodedata.normalize("NFKC", stream_safe).casefold()) or text
