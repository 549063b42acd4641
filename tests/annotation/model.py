"""What can be done in any order, as strategies, and what must follow from it, as a model.

The model is dicts and lists of snapshots, and shares no rule with the program.

An annotation is a dict of its fields, which is replaced and never changed. A step keeps all annotations of its
character before and after it, so undoing and redoing need no rule of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from hypothesis import strategies as st

from prefanno.errors import Conflict, InvalidInput, NothingToUndo, PrefannoError
from prefanno.prompting import Message
from prefanno.rows import Mode, Row

Fields = dict[str, Any]
Refusal = type[PrefannoError]
SIDES = ("chosen", "chosen_thinking", "rejected", "rejected_thinking")
QUERIES = ("离的", "ab", "书店", "<think>\n", "ss", "🦊🦊")
VERDICTS = ("best", "ranking", "good", "bad", "edit", "skip")
RANKS: dict[str, list[int | None]] = {"best": [1, 2, 2], "ranking": [2, 1, 1], "edit": [1, 2], "good": [1, None, 1]}

words = st.sampled_from(
    ["离的旧书店", "书店的离", "Abab", "aBA", "straße", "<think>\nx\n</think>\n\ny", "🦊🦊", " b\r\n"]
)
thoughts = st.none() | words
tags = st.sampled_from(["warm", 'quoted "warm', "书店"])
people = st.none() | st.sampled_from(["Ann", "Bob"])
about = st.fixed_dictionaries({"reasons": st.lists(tags, max_size=2), "note": thoughts, "annotator": people})
slugs = st.sampled_from(["li", "mei"])
modes: st.SearchStrategy[Mode] = st.sampled_from(["single", "multi"])
places = st.integers(0, 30)


def _context(texts: Sequence[str]) -> list[Message]:
    """Roles alternate, the last is the assistant's."""
    places = range(len(texts), 0, -1)
    return [
        {"role": "user" if place % 2 == 0 else "assistant", "content": text}
        for place, text in zip(places, texts, strict=True)
    ]


contexts = st.lists(words, max_size=3).map(_context)


@st.composite
def choices(draw: st.DrawFn) -> tuple[str, Fields]:
    """A verdict and what it needs, of up to three candidates; some have fewer."""
    verdict = draw(st.sampled_from(VERDICTS))
    if verdict == "ranking":
        order = draw(st.permutations([1, 2, 3]))[: draw(st.integers(1, 3))]
        cut = draw(st.integers(0, len(order)))
        return verdict, {"ranking": [group for group in (order[:cut], order[cut:]) if group]}
    if verdict in ("bad", "skip"):
        return verdict, {}
    edited = {"content": draw(words), "thinking": draw(thoughts)} if verdict == "edit" else {}
    return verdict, {"chosen": draw(st.integers(1, 3)), **edited}


@st.composite
def judgements(draw: st.DrawFn) -> Fields:
    """A verdict and replies whose ranks fit it, mostly."""
    verdict = draw(st.sampled_from(VERDICTS))
    likely = RANKS.get(verdict, [None])
    ranks = draw(st.permutations(likely) | st.lists(st.sampled_from([None, 1, 2, 3]), min_size=1, max_size=3))
    replies = [{"content": draw(words), "thinking": draw(thoughts), "rank": rank, "candidate": None} for rank in ranks]
    return {"verdict": verdict, "replies": replies}


reworded = {"note": words, "reasons": st.lists(tags, max_size=2), "annotator": people, "human_input": words}
edits = st.one_of(
    st.fixed_dictionaries({}, optional=reworded | {"context": contexts}),
    st.fixed_dictionaries({"note": thoughts}),
    st.fixed_dictionaries({"verdict": st.sampled_from(VERDICTS)}),
    judgements(),
)


@st.composite
def _candidates(draw: st.DrawFn) -> list[Fields]:
    """Two or three replies, as a generation has them."""
    replies = draw(st.lists(st.tuples(words, thoughts), min_size=2, max_size=3))
    return [
        {"content": content, "thinking": thinking, "rank": None, "candidate": ordinal}
        for ordinal, (content, thinking) in enumerate(replies, 1)
    ]


among = _candidates()


@dataclass(frozen=True)
class Step:
    """What undo and redo need."""

    kind: str
    changed: int
    before: Mapping[int, Fields]
    after: Mapping[int, Fields]


@dataclass
class Model:
    """All that is known; `times` holds what is given once and never changes. Refusals are returned."""

    slugs: list[str]
    annotations: dict[int, Fields] = field(default_factory=dict)
    times: dict[int, datetime] = field(default_factory=dict)
    turns: dict[int, Fields] = field(default_factory=dict)
    past: dict[str, list[Step]] = field(default_factory=dict)
    future: dict[str, list[Step]] = field(default_factory=dict)

    def add(self, slug: str, row: Row) -> int:
        """One annotation more; a thinking that is left out is that of the last candidate with the same text."""
        number = max(self.annotations, default=0) + 1
        self._step(slug, "add", {number: self._of_row(slug, self._with_thinking(slug, row))})
        self.times[number] = row.created_at
        return number

    def load(self, slug: str, rows: Sequence[Row]) -> tuple[int, int]:
        """All rows that differ in some word from each that is there and from each before; how many, and the others."""
        known = {_words_of(row) for row in self.rows(slug)}
        new: list[Row] = []
        for row in rows:
            if _words_of(row) not in known:
                known.add(_words_of(row))
                new.append(row)
        first = max(self.annotations, default=0) + 1
        self._step(slug, "import", {first + place: self._of_row(slug, row) for place, row in enumerate(new)})
        self.times |= {first + place: row.created_at for place, row in enumerate(new)}
        return len(new), len(rows) - len(new)

    def choose(self, number: int, verdict: str, said: Fields, about: Fields) -> int | Refusal:
        """The choice among the turn's candidates; the first one's place is taken, deleted or not."""
        turn = self.turns[number]
        replies = _judged(turn["candidates"], verdict, said)
        if replies is None:
            return InvalidInput
        known = [one for one, annotation in self.annotations.items() if annotation["generation_id"] == number]
        copied = ("character", "mode", "system_prompt", "context", "human_input", "adapter")
        new = {name: turn[name] for name in copied} | {"weight": 1.0, "generation_id": number}
        old = self.annotations[known[0]] if known else new
        number = known[0] if known else max(self.annotations, default=0) + 1
        choice = {"verdict": verdict, "replies": replies, **about, "deleted": False}
        self._step(turn["character"], "choose", {number: old | choice})
        return number

    def edit(self, number: int, fields: Fields) -> int | Refusal:
        """The annotation with these fields, where it is not deleted and its ranks are those of its verdict."""
        if self.annotations[number]["deleted"]:
            return Conflict
        changed = self.annotations[number] | fields
        if {"verdict", "replies"} & set(fields) and not _fits(changed["verdict"], changed["replies"]):
            return InvalidInput
        self._step(changed["character"], "edit", {number: changed})
        return number

    def set_deleted(self, numbers: Sequence[int], deleted: bool) -> int | Refusal:
        """Deleted or restored; how many were not so before."""
        slugs = {self.annotations[number]["character"] for number in numbers}
        if len(slugs) > 1:
            return InvalidInput
        changes = {number: self.annotations[number] | {"deleted": deleted} for number in numbers}
        return self._step(slugs.pop(), "delete" if deleted else "restore", changes) if slugs else 0

    def undo(self, slug: str) -> tuple[str, int] | Refusal:
        """All as it was before the last step; what was not there yet is there, deleted."""
        if not self.past[slug]:
            return NothingToUndo
        step = self.past[slug].pop()
        self.future[slug].append(step)
        for number, annotation in self._of(slug).items():
            self.annotations[number] = step.before.get(number, annotation | {"deleted": True})
        return step.kind, step.changed

    def redo(self, slug: str) -> tuple[str, int] | Refusal:
        """All as it was after the step that was undone last."""
        if not self.future[slug]:
            return NothingToUndo
        step = self.future[slug].pop()
        self.past[slug].append(step)
        self.annotations |= step.after
        return step.kind, step.changed

    def coming(self, slug: str) -> list[tuple[str, int] | None]:
        """What undo and redo would do."""
        return [
            (steps[-1].kind, steps[-1].changed) if steps else None for steps in (self.past[slug], self.future[slug])
        ]

    def words_after(self, number: int) -> list[Message] | Refusal:
        """The words before a turn that goes on from this one."""
        turn = self.turns[number]
        mine = [one for one in self.annotations.values() if one["generation_id"] == number and _listed(one)]
        return InvalidInput if turn["mode"] == "single" or not mine else _whole(mine[0])

    def counts(self, slug: str) -> dict[str, int]:
        """How many have a best reply, by mode."""
        return {mode: len(self.newest(slug, mode)) for mode in ("single", "multi")}

    def newest(self, slug: str, mode: str) -> list[int]:
        """The ids of those that have a best reply, newest first."""
        return [number for number in self.find(slug, mode=mode) if _listed(self.annotations[number])]

    def find(self, slug: str, q: str | None = None, deleted: bool = False, **wanted: Any) -> list[int]:
        """The ids of what has these words and these fields, newest first."""
        return [
            number
            for number, one in sorted(self._of(slug).items(), reverse=True)
            if one["deleted"] == deleted
            and (q is None or any(q.casefold() in text.casefold() for text in _texts(one)))
            and all(
                value in one["reasons"] if name == "reason" else one[name] == value for name, value in wanted.items()
            )
        ]

    def rows(self, slug: str) -> list[Row]:
        """What an export writes."""
        kept = {number: one for number, one in self._of(slug).items() if not one["deleted"]}
        return [row for number, one in kept.items() for row in self._rows(number, one)]

    def _of(self, slug: str) -> dict[int, Fields]:
        return {number: one for number, one in self.annotations.items() if one["character"] == slug}

    def _step(self, slug: str, kind: str, changes: Mapping[int, Fields]) -> int:
        """Only what changes something is a step; then there is nothing to redo."""
        real = {number: one for number, one in changes.items() if self.annotations.get(number) != one}
        if real:
            before = self._of(slug)
            self.annotations |= real
            self.past[slug].append(Step(kind, len(real), before, self._of(slug)))
            self.future[slug].clear()
        return len(real)

    def _with_thinking(self, slug: str, row: Row) -> Row:
        said = [reply for turn in self.turns.values() if turn["character"] == slug for reply in turn["candidates"]]
        thoughts = {reply["content"]: reply["thinking"] for reply in said}
        values = {name: getattr(row, name) for name in SIDES}
        for side in ("chosen", "rejected"):
            values[f"{side}_thinking"] = values[f"{side}_thinking"] or thoughts.get(values[side])
        return replace(row, **values)

    def _of_row(self, slug: str, row: Row) -> Fields:
        chosen, rejected = (row.chosen, row.chosen_thinking), (row.rejected, row.rejected_thinking)
        ranked: dict[int | None, tuple[str | None, str | None]]
        if row.rejected is None:
            verdict, ranked = "good", {1: chosen}
        elif row.chosen is None:
            verdict, ranked = "bad", {None: rejected}
        else:
            verdict, ranked = "best", {1: chosen, 2: rejected}
        return {
            "character": slug,
            **{name: getattr(row, name) for name in ("mode", "system_prompt", "human_input", "weight")},
            "context": list(row.context),
            "verdict": verdict,
            "replies": [{"content": a, "thinking": b, "rank": c, "candidate": None} for c, (a, b) in ranked.items()],
            "reasons": [],
            **dict.fromkeys(("note", "annotator", "adapter", "generation_id")),
            "deleted": False,
        }

    def _rows(self, number: int, one: Fields) -> list[Row]:
        replies, verdict = one["replies"], one["verdict"]
        pairs = [(a, b) for a in replies for b in replies if a["rank"] and b["rank"] and a["rank"] < b["rank"]]
        alone = [a for a in replies if verdict == "bad" or (verdict == "good" and a["rank"] == 1)]
        found: list[tuple[Mode, Fields | None, Fields | None, float]] = []
        found += [("single", a, b, one["weight"] / len(pairs)) for a, b in pairs]
        found += [
            ("single", *((a, None) if verdict == "good" else (None, a)), one["weight"] / len(alone)) for a in alone
        ]
        best = _best(one)
        if one["mode"] == "multi" and best is not None and not self._continued(one):
            _, worse = min(pairs, key=lambda pair: (pair[0] is not best, pair[1]["rank"]), default=(None, None))
            first = next((row for row in found if row[1] is best and row[2] is worse), ("", None, None, one["weight"]))
            found = [("multi", best, worse, first[3]), *(row for row in found if row is not first)]
        return [_row(one, self.times[number], *row) for row in found]

    def _continued(self, one: Fields) -> bool:
        """Whether the words of a decided turn of the same conversation begin with all that was said up to here."""
        if one["generation_id"] is None:
            return False
        first = self._first(one["generation_id"])
        others = [a for a in self.annotations.values() if a["generation_id"] is not None and _listed(a)]
        words = _whole(one)
        return any(a["context"][: len(words)] == words for a in others if self._first(a["generation_id"]) == first)

    def _first(self, number: int) -> int:
        """The turn that the conversation of this one began with."""
        while (parent := self.turns[number]["parent"]) is not None:
            number = parent
        return number


def _row(one: Fields, moment: datetime, mode: Mode, *sides_and_weight: Any) -> Row:
    *sides, weight = sides_and_weight
    texts = [reply[name] if reply else None for reply in sides for name in ("content", "thinking")]
    said: Fields = dict(zip(SIDES, texts, strict=True))
    said |= {name: one[name] for name in ("system_prompt", "context", "human_input")}
    return Row(mode=mode, **said, created_at=moment, weight=weight)


def _whole(one: Fields) -> list[Message]:
    """All that was said, up to the best reply."""
    best = _best(one)
    return [*one["context"], _said("user", one["human_input"]), _said("assistant", best["content"] if best else "")]


def _listed(one: Fields) -> bool:
    """Not deleted, and of use in its dataset: a conversation that can go on, or a reply that is better than another."""
    better = one["mode"] == "multi" or (one["verdict"] != "good" and any((a["rank"] or 0) > 1 for a in one["replies"]))
    return not one["deleted"] and _best(one) is not None and better


def _best(one: Fields) -> Fields | None:
    """The first reply of rank 1."""
    ends: list[Fields] = [reply for reply in one["replies"] if reply["rank"] == 1]
    return ends[0] if ends else None


def _texts(one: Fields) -> list[str]:
    texts = [one["human_input"], one["note"], *(turn["content"] for turn in one["context"])]
    texts += [reply[name] for reply in one["replies"] for name in ("content", "thinking")]
    return [text for text in texts if text is not None]


def _said(role: Literal["user", "assistant"], content: str) -> Message:
    return {"role": role, "content": content}


def _words_of(row: Row) -> str:
    return repr([row.mode, row.system_prompt, row.context, row.human_input, *(getattr(row, side) for side in SIDES)])


def _judged(candidates: Sequence[Fields], verdict: str, said: Fields) -> list[Fields] | None:
    """The candidates with their ranks; None where the choice names what is not there, or says nothing new."""
    groups = said.get("ranking") or [[said["chosen"]] if "chosen" in said else []]
    named = [ordinal for group in groups for ordinal in group]
    if max(named, default=1) > len(candidates) or (verdict == "ranking" and len(named) < 2):
        return None
    ranks = {ordinal: rank for rank, group in enumerate(groups, 1) for ordinal in group}
    replies = [reply | {"rank": ranks.get(reply["candidate"])} for reply in candidates]
    if verdict == "best":
        return [reply | {"rank": reply["rank"] or 2} for reply in replies]
    if verdict == "edit":
        (original,) = (reply | {"rank": 2} for reply in replies if reply["rank"])
        thinking = said["thinking"] or original["thinking"]
        edited = {"content": said["content"], "thinking": thinking, "rank": 1, "candidate": None}
        same = all(edited[name] == original[name] for name in ("content", "thinking"))
        return None if same else [edited, original]
    return replies


def _fits(verdict: str, replies: Sequence[Fields]) -> bool:
    """Whether the ranks say what the verdict does."""
    ranks = [reply["rank"] for reply in replies]
    judged = sorted(rank for rank in ranks if rank is not None)
    steps = [after - before for before, after in zip([0, *judged], judged, strict=False)]
    dense = bool(judged) and steps[0] == 1 and max(steps) == 1
    return {
        "best": len(ranks) > 1 and judged == [1] + [2] * (len(ranks) - 1),
        "ranking": dense and len(judged) > 1,
        "edit": judged == [1, 2] and len(ranks) == 2,
        "good": dense and judged[-1] == 1,
        "bad": not judged,
        "skip": not judged,
    }[verdict]
