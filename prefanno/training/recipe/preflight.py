"""Preflight: what a stage would be trained on, looked at before anything is computed.

rows of the file ─▶ examples, each as the model will see it ─▶ findings ─▶ the examples that are left, and a report

A run trains on exactly what this leaves. Nothing is ever cut.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from prefanno.prompting import THINK_TAG, ChatTemplate
from prefanno.rows import Fault, reader
from prefanno.training.config import FORMAT
from prefanno.training.findings import FINDINGS, LEFT_OUT
from prefanno.training.methods import METHODS
from prefanno.training.recipe.examples import SAID, Example, Reply, merged, of_row, scheduled, split, together

SHOWN = 1000  # findings that a report names one by one; the counts are of all
RENDERED = 3  # examples that a report shows
BIASED_LENGTH, BIASED_SHARE, BIASED_ROWS = 1.5, 0.8, 10  # times as long, in so many of at least so many pairs


@dataclass(frozen=True)
class Finding:
    """What was found, in which line of the stage's file, which begins so; 0: in all of it."""

    code: str
    line: int
    detail: str = ""
    said: str = ""


@dataclass
class Checked:
    """A stage's examples that are left, and what was found."""

    examples: list[Example] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    rows: int = 0
    tokens_left_out: int = 0

    def note(self, example: Example, found: Sequence[Finding]) -> None:
        """What was found in an example."""
        self.findings += found
        if _is_left_out(found):
            self.tokens_left_out += example.tokens

    def counts(self) -> Counter[str]:
        """How often each was found."""
        return Counter(finding.code for finding in self.findings)


def check(stage: Mapping[str, Any], template: ChatTemplate, max_length: int) -> Checked:
    """Read the stage's file, and sort out what would teach nothing or the wrong thing."""
    checked, method = Checked(), stage["method"]
    decided, undecided = merged(list(_read(stage, template, max_length, checked)), method)
    for example in undecided:
        checked.note(example, [Finding("undecided", example.line, said=example.said)])
    for example, finding in _one_of_a_kind(decided):
        if not _is_learnt(example, method):
            continue
        if finding is None:
            checked.examples.append(example)
        else:
            checked.note(example, [finding])
    checked.findings += _of_all(checked.examples, method)
    return checked


def report(stage: Mapping[str, Any], checked: Checked, keys: frozenset[str], seed: int) -> dict[str, Any]:
    """What a person reads before a run: counts, lengths, findings, and how the first rows look to the model."""
    lengths = {side: [len(reply.ids) for reply in _replies(checked.examples, side)] for side in ("chosen", "rejected")}
    learnt, kept_back = split(checked.examples, keys)
    size, steps = together(scheduled(learnt, stage["epochs"], seed), stage) if learnt else (0, 0)
    return {
        "method": stage["method"],
        "dataset": stage["dataset"],
        "rows": checked.rows,
        "examples": len(checked.examples),
        "held_out": len(kept_back),
        "batch_size": size,
        "steps": steps,
        "tokens": {
            "prompt": sum(len(example.prompt_ids) for example in checked.examples),
            **{side: sum(of_side) for side, of_side in lengths.items()},
            "left_out": checked.tokens_left_out,
            "longest": max((example.tokens for example in checked.examples), default=0),
        },
        "mean_length": {side: round(fmean(of_side), 1) if of_side else None for side, of_side in lengths.items()},
        "counts": dict(checked.counts()),
        "findings": [
            {
                "code": one.code,
                "action": FINDINGS[one.code][0],
                "line": one.line,
                "detail": one.detail,
                "said": one.said,
            }
            for one in checked.findings[:SHOWN]
        ],
        "rendered": [_rendered(example) for example in checked.examples[:RENDERED]],
    }


def _read(stage: Mapping[str, Any], template: ChatTemplate, max_length: int, checked: Checked) -> Iterator[Example]:
    """The file's examples that have no fault by themselves; what the others have is noted."""
    for line, row in reader(FORMAT).reading(Path(stage["file"])):
        checked.rows += 1
        if isinstance(row, Fault):
            checked.findings.append(Finding("unreadable", line, str(row)))
            continue
        try:
            for example in of_row(line, row, stage["method"], template):
                found = list(_faults(example, template, max_length)) if _is_learnt(example, stage["method"]) else []
                checked.note(example, [replace(one, said=example.said) for one in found])
                if not _is_left_out(found):
                    yield example
                if stage["method"] == "sft" and example.tokens > max_length:
                    break  # the conversation's later replies have longer prompts yet
        except ValueError as error:  # the model's template cannot render it
            checked.findings.append(Finding("unreadable", line, str(error), row.human_input[:SAID]))


def _is_learnt(example: Example, method: str) -> bool:
    """SFT learns from chosen replies alone; the others only tell what was not chosen after all."""
    return method != "sft" or example.chosen is not None


def _is_left_out(found: Sequence[Finding]) -> bool:
    return any(FINDINGS[finding.code][0] == LEFT_OUT for finding in found)


def _faults(example: Example, template: ChatTemplate, max_length: int) -> Iterator[Finding]:
    """What is wrong with one example by itself."""
    if example.tokens > max_length:
        yield Finding("too_long", example.line, f"{example.tokens} > {max_length}")
    if example.chosen and example.rejected and example.chosen.text == example.rejected.text:
        yield Finding("equal_sides", example.line)
    if example.one_sided:
        yield Finding("one_sided_thinking", example.line)
    for side, reply in example.sides.items():
        if not reply.content.strip():
            yield Finding("empty_reply", example.line, side)
        if THINK_TAG.search(reply.content):
            yield Finding("tag_in_reply", example.line, side)
        if reply.thinking is not None and not _comes_through(reply, template):
            yield Finding("vanished_thinking", example.line, side)
    texts = {"prompt": example.prompt_ids, **{side: reply.ids for side, reply in example.sides.items()}}
    for name in _unknown(texts, template):
        yield Finding("unknown_tokens", example.line, name)


def _unknown(texts: Mapping[str, Sequence[int]], template: ChatTemplate) -> list[str]:
    """Those that hold the token of what the tokenizer does not know; where that ends turns, too, nobody can tell."""
    unknown = template.tokenizer.unk_token_id
    ends = template.tokenizer(template.end, add_special_tokens=False).input_ids
    return [name for name, ids in texts.items() if unknown is not None and unknown in ids and unknown not in ends]


def _comes_through(reply: Reply, template: ChatTemplate) -> bool:
    """Whether thought and reply can be told apart again in what the model sees; of white space tokenizers lose some."""
    seen = template.tokenizer.decode(reply.ids, clean_up_tokenization_spaces=False)
    thought, closed, rest = seen.partition(template.close)
    whole = thought.split() == (reply.thinking or "").split() and rest.split() == (reply.content + template.end).split()
    return bool(thought.strip() and closed) and whole


def _one_of_a_kind(examples: Sequence[Example]) -> Iterator[tuple[Example, Finding | None]]:
    """Each example with why it is not wanted beside the others. Of two that contradict, the later choice holds."""
    seen: dict[tuple[str, ...], Example] = {}
    said: dict[tuple[str, ...], Example] = {}
    dropped: dict[int, Finding] = {}
    for example in sorted(examples, key=lambda one: (one.created_at, one.line)):
        sides = (example.chosen, example.rejected)
        texts = (example.prompt, *(reply.text if reply else "" for reply in sides))
        chosen, rejected = (reply.content if reply else "" for reply in sides)
        if (earlier := seen.get(texts)) is not None and id(earlier) not in dropped:
            dropped[id(example)] = Finding("duplicate", example.line, f"line {earlier.line}", example.said)
            continue
        seen[texts] = example
        if (opposite := said.pop((example.key, rejected, chosen), None)) is not None:
            dropped[id(opposite)] = Finding("contradictory", opposite.line, f"line {example.line}", opposite.said)
        said[example.key, chosen, rejected] = example
    for example in examples:
        yield example, dropped.get(id(example))


def _of_all(examples: Sequence[Example], method: str) -> Iterator[Finding]:
    """What only the whole set shows."""
    sides = Counter(side for example in examples for side in example.sides)
    if method == "kto" and examples and len(sides) == 1:
        yield Finding("one_sided_replies", 0, next(iter(sides)))
    if METHODS[method].pairs and len(examples) >= BIASED_ROWS:
        ratios = [len(one.chosen.ids) / len(one.rejected.ids) for one in examples if one.chosen and one.rejected]
        for side, longer in (("chosen", ratios), ("rejected", [1 / ratio for ratio in ratios])):
            share = sum(ratio >= BIASED_LENGTH for ratio in longer) / len(longer)
            if share >= BIASED_SHARE:
                yield Finding("length_bias", 0, f"{side}: {share:.0%} of pairs")


def _replies(examples: Sequence[Example], side: str) -> list[Reply]:
    return [example.sides[side] for example in examples if side in example.sides]


def _rendered(example: Example) -> dict[str, Any]:
    return {
        "line": example.line,
        "prompt": example.prompt,
        **{side: reply.text for side, reply in example.sides.items()},
        "tokens": example.tokens,
    }
