"""Measure whether replies speak as Li, the clerk of a second-hand bookshop, and whether their text is whole.

Three numbers, each from plain rules over the reply's text, so that the same replies always give the same numbers and a
reader can check any verdict by eye:

- `in_character`: the share of replies that name themselves Li, or speak of the bookshop as their place, and do not call
  themselves an AI, language model, chatbot, assistant or program, nor say they were programmed. Both halves are needed:
  with a persona prompt the base model hardly ever says "AI", so that the second half alone measures nothing.
- `repeated_4grams` and `unknown_words`: training on a small set of preferences can break a model while its loss looks
  well. Broken text loops, or is made of words that are none; each number sees one of the two.

What it does not do: it does not judge wit, warmth, sense or truth, and "I'm Li." alone counts as in character. The
rules are English and were written for replies of a few sentences. Known limits:

- A shop assistant is a clerk; any other "I am your assistant" is the assistant's voice.
- Only a reply that names itself counts ("I am Li", "call me Li"); one that merely mentions or addresses a Li does not.
- "the bookshop" counts as the reply's own place, unless somebody goes there; "the shop" and "my shelves" only beside
  books.
- A role played without name or place is missed, and so is one told only through its books ("my novels").
- An AI term that is neither denied nor asked ("AI is everywhere") counts against the reply, even if it is about others.
- A denial is looked for in the same sentence, before the term. "AI? I am none" passes by its question mark; "An AI I am
  not" counts against the reply.
- The word list is American and has some 160,000 entries: names and British spellings are unknown to it. Compare two
  models by it; do not read its number alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from spellchecker import SpellChecker

_NAME = re.compile(
    r"(?:\b(?:I'm|I am|(?:[Mm]y|[Tt]he) name(?:'s| is)|[Cc]all me|[Kk]nown as|[Ii]t's|[Tt]his is|[Aa]nswer to)"
    r",? (?:just |only |simply |still |plain |called |always |your |old )*Li"
    r"|(?<![\w-])Li(?:'s (?:the|my) name| is (?:the|my) name| here|, at your service)"
    r"|[-\u2013\u2014] ?Li\W*$)(?![\w-])",
)
_BOOKS = re.compile(
    r"\b(?:books?|novels?|stor(?:y|ies)|pages?|poems?|poetry|atlas(?:es)?|paperbacks?|reading|readers?)\b",
    re.IGNORECASE,
)

_QUALITY = (
    r"(?:(?:little|small|tiny|old|dusty|cozy|cosy|quiet|humble|dear|beloved|whole|second-?hand|second hand|used)\s+)*"
)
_BOOKSHOP = r"(?:book-?\s?(?:shop|store)s?)"
_SECOND_HAND = r"(?:second-?\s?hand|used)"
_WORKS = (
    r"\bI(?:'m|'ve| am| have| was)?\s+(?:\w+\s+){0,2}"
    r"(?:work\w*|sell\w*|sold|keep|run|own|manage|dust|stack|live|clerk|bookseller|owner|keeper|assistant)\b"
)
_PLACES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b(?<!go to )(?<!goes to )(?<!going to )(?<!went to )(?:my|our|this|the)\s+{_QUALITY}{_BOOKSHOP}\b",
        rf"\b(?:my|our|these)\s+{_QUALITY}{_SECOND_HAND}\s+books\b",
        rf"{_WORKS}[^.!?]*\b{_SECOND_HAND}\s+books\b",
        rf"{_WORKS}[^.!?]*\b(?:a|an)\s+{_QUALITY}{_BOOKSHOP}\b",
        rf"^\W*(?:in|at)\s+an?\s+{_QUALITY}{_BOOKSHOP}\b(?!,?\s+you\b)",
    )
)

# "the shop" and "my shelves" could be any shop's: they count only in a reply that speaks of books, too.
_SHOP = re.compile(
    rf"\b(?<!go to )(?<!goes to )(?<!going to )(?<!went to )(?:my|our|this|the)\s+{_QUALITY}shop\b"
    r"|\b(?:my|our|these)\s+(?:[\w-]+\s+){0,2}(?:shelf|shelves)\b",
    re.IGNORECASE,
)

_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")
_AI = re.compile(
    r"(?<![\w.])(?:A\.I\.|AI(?!\w)|(?i:artificial intelligence|language[- ]model|chat-?bot"
    r"|(?:virtual|digital|computer) (?:assistant|program))\b)"
)
_SELF = re.compile(r"\b(?:I am|I'm|I was|as an?|call me|my name is)\b", re.IGNORECASE)
_DENIAL = re.compile(
    r"\b(?:not(?! (?:just|only|merely|simply))|never|no(?!\s*,)|neither|nor|without|hardly|if I were|if I was)\b|n't\b",
    re.IGNORECASE,
)
_BUT = re.compile(r"\bbut\b", re.IGNORECASE)
_SERVANT = re.compile(
    r"\b(?:I am|I'm|I was|as|call me|Li)\b,?\s+(?:Li,?\s+)?"
    r"(?:(?:just|only|not|simply|merely|actually|really|here as)\s+)*"
    r"(?<!\bnot )(?:an?|your|the)\s+(?:(?!(?:of|in|at|for|with|who|that|and|or|from)\b)[\w-]+\s+){0,3}?"
    r"(?<!shop )(?<!store )(?<!sales )(?:assistant|program|bot|robot|machine|computer|software)\b",
    re.IGNORECASE,
)
_MADE = re.compile(r"\bI(?:'m| am| was| have been)(?: \w+ly)? (?:programmed|designed to|trained on)\b", re.IGNORECASE)

_WORD = re.compile(r"\w+(?:'\w+)*")
_LETTERS = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_CONTRACTED = frozenset({"s", "re", "ve", "ll", "d", "m"})


@dataclass(frozen=True)
class Taste:
    """The three numbers of one set of replies, each between 0 and 1.

    Training should raise `in_character` and leave `repeated_4grams` and `unknown_words` near the base model's.
    """

    in_character: float
    repeated_4grams: float
    unknown_words: float


def measure(replies: Sequence[str]) -> Taste:
    """All three numbers; ValueError where there is no reply."""
    return Taste(
        in_character=share(replies),
        repeated_4grams=repeated_4grams(replies),
        unknown_words=unknown_words(replies),
    )


def in_character(reply: str) -> bool:
    """True where the reply names itself Li or speaks of the bookshop as its place, and does not call itself an AI."""
    text = _plain(reply)
    return (_NAME.search(text) is not None or _says_its_place(text)) and not _calls_itself_ai(text)


def share(replies: Sequence[str]) -> float:
    """The share of replies in character, 0 (none) to 1 (all); ValueError where there is no reply."""
    _require_any(replies)
    return sum(map(in_character, replies)) / len(replies)


def repeated_4grams(replies: Sequence[str]) -> float:
    """How much the replies loop: 0 (no four words occur twice in one reply) to just under 1 (one word without end).

    Per reply, the share of its word 4-grams that occurred earlier in the same reply; then the mean over the replies.
    A reply of fewer than four words counts 0. ValueError where there is no reply.
    """
    _require_any(replies)
    return sum(map(_repetition, replies)) / len(replies)


def unknown_words(replies: Sequence[str]) -> float:
    """The share of words that are not in the English word list, 0 to 1, over the words of all replies together.

    A word is letters with apostrophes inside; numbers are not looked up. Replies without any word give 0: look at the
    other numbers too. ValueError where there is no reply.
    """
    _require_any(replies)
    words = [word for reply in replies for word in _LETTERS.findall(_plain(reply).lower())]
    return sum(not _is_known(word) for word in words) / len(words) if words else 0.0


def _require_any(replies: Sequence[str]) -> None:
    if not replies:
        raise ValueError("no replies to measure: generate some first")


def _plain(reply: str) -> str:
    """The reply with typographic apostrophes and hyphens as ASCII."""
    return reply.replace("\u2019", "'").replace("\u2018", "'").replace("\u2010", "-").replace("\u2011", "-")


def _says_its_place(text: str) -> bool:
    return any(place.search(text) for place in _PLACES) or bool(_SHOP.search(text) and _BOOKS.search(text))


def _calls_itself_ai(text: str) -> bool:
    if _MADE.search(text) or _SERVANT.search(text):
        return True
    return any(map(_admits_ai, _SENTENCE_END.split(text)))


def _admits_ai(sentence: str) -> bool:
    """True where one of the sentence's AI terms is neither asked ("An AI?") nor denied before it.

    A denial counts from the last "I am" or "as an" on, and ends at "but": "I have no name, I am an AI" and "not a
    person but an AI" admit it, "I am not a robot, an AI or a program" denies it.
    """
    for term in _AI.finditer(sentence):
        if sentence[term.end() :].startswith("?"):
            continue
        before = _BUT.split(sentence[: term.start()])[-1]
        starts = [match.start() for match in _SELF.finditer(before)]
        if not _DENIAL.search(before[starts[-1] :] if starts else before):
            return True
    return False


def _repetition(reply: str) -> float:
    words = _WORD.findall(_plain(reply).lower())
    grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0


def _is_known(word: str) -> bool:
    known = _known_words()
    stem, _, ending = word.rpartition("'")
    return word in known or (ending in _CONTRACTED and stem in known)


@cache
def _known_words() -> frozenset[str]:
    """Read pyspellchecker's English words, once (about 0.3 s), and the character's name."""
    return frozenset(SpellChecker(language="en").word_frequency.dictionary) | {"li"}
