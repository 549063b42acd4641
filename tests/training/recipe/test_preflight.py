"""Preflight: each finding has a row that triggers it, on templates with and without thinking."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from prefanno.prompting import ChatTemplate
from prefanno.rows import Row
from prefanno.training.findings import FINDINGS, LEFT_OUT
from prefanno.training.recipe.preflight import Checked, check, report
from tests.test_prompting import SHAPES, Shape
from tests.training.recipe.rows import absolute, prepared, row, template

LONG = "Riddles are fun. " * 40
TALK = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho!"}]
THOUGHTS = ("A guest.", "A user.")
PAIRS = [row(f"I am Li, {number}.", f"I am an AI, {number}.", minute=number) for number in range(3)]

# method, what triggers the finding, how many examples are left beside the three good pairs
TRIGGERS: dict[str, tuple[str, list[Row], int]] = {
    "too_long": ("simpo", [row(LONG, "No.")], 0),
    "empty_reply": ("simpo", [row(" ", "No.")], 0),
    "equal_sides": ("simpo", [row("Same.", "Same.")], 0),
    "vanished_thinking": ("simpo", [row("I am Li!", "An AI!", (" ", "A user."))], 0),
    "tag_in_reply": ("simpo", [row("<think>A guest.</think>I am Li!", "An AI!")], 0),
    "duplicate": ("simpo", [PAIRS[0]], 0),
    "contradictory": ("simpo", [row("I am an AI, 0.", "I am Li, 0.", minute=9)], 0),
    "undecided": ("kto", [row("A.", None), row(None, "A.")], 0),
    "one_sided_thinking": ("simpo", [row("Guess!", "No.", ("A riddle.", None))], 1),
    "length_bias": ("simpo", [row("Li " * (20 + number), "AI.", minute=number) for number in range(20)], 20),
    "one_sided_replies": ("kto", [row("Good.", None)], 1),
}


def _checked(folder: Path, method: str, rows: list[Row], form: ChatTemplate, max_length: int = 512) -> Checked:
    dataset = "unpaired" if method == "kto" else "roleplay" if method == "sft" else "preference"
    config = prepared(folder, folder, rows, [{"method": method, "dataset": dataset}])
    return check(absolute(folder, config.stages[0]), form, max_length)


def test_every_finding_has_a_trigger() -> None:
    """The table below leaves out none but those that need a file or a tokenizer of their own, tested further down."""
    assert set(TRIGGERS) | {"unreadable", "unknown_tokens"} == set(FINDINGS)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("code", TRIGGERS)
def test_a_finding_is_made_on_every_template(tmp_path: Path, code: str, shape: Shape) -> None:
    """The row is found, and left out or kept as the table of findings says; three good pairs beside it stay."""
    method, rows, stay = TRIGGERS[code]
    good = [] if method == "kto" else PAIRS
    checked = _checked(tmp_path, method, [*good, *rows], template(shape.jinja))
    assert [finding.code for finding in checked.findings if finding.code != "length_bias" or code == "length_bias"] == [
        code
    ]
    assert len(checked.examples) == len(good) + stay
    assert (FINDINGS[code][0] == LEFT_OUT) == (stay == 0)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_good_rows_raise_no_finding(tmp_path: Path, shape: Shape) -> None:
    """The control: pairs with and without thoughts, and a conversation, pass on every template."""
    form = template(shape.jinja)
    assert _checked(tmp_path / "1", "simpo", [*PAIRS, row("Li!", "An AI!", THOUGHTS)], form).findings == []
    talk = row("I am Li.", None, ("Fun.", None), mode="multi", context=TALK)
    assert _checked(tmp_path / "2", "sft", [talk], form).findings == []


def test_of_two_that_contradict_the_later_choice_holds(tmp_path: Path) -> None:
    """Whatever their order in the file, the newer of two opposite choices is trained on."""
    older, newer = row("I am Li.", "I am an AI.", minute=1), row("I am an AI.", "I am Li.", minute=2)
    for number, rows in enumerate(([older, newer], [newer, older])):
        checked = _checked(tmp_path / str(number), "simpo", rows, template(SHAPES[0].jinja))
        (example,) = checked.examples
        assert example.chosen and example.chosen.content == "I am an AI."


def test_a_choice_made_again_after_its_opposite_counts_once(tmp_path: Path) -> None:
    """A over B, B over A, A over B: the first two are out, one as contradicted by each other's successor."""
    rows = [row("A.", "B.", minute=1), row("B.", "A.", minute=2), row("A.", "B.", minute=3)]
    checked = _checked(tmp_path, "simpo", rows, template(SHAPES[0].jinja))
    assert [finding.code for finding in checked.findings] == ["contradictory", "contradictory"]
    (example,) = checked.examples
    assert example.created_at == rows[2].created_at


def test_an_opposite_is_found_whatever_the_thoughts(tmp_path: Path) -> None:
    """A pair with thoughts and a later one without them, of the same replies the other way round, contradict."""
    rows = [row("A.", "B.", THOUGHTS, minute=1), row("B.", "A.", minute=2)]
    checked = _checked(tmp_path, "simpo", rows, template(SHAPES[0].jinja))
    assert [finding.code for finding in checked.findings] == ["contradictory"] and len(checked.examples) == 1


def test_one_choice_does_not_contradict_itself(tmp_path: Path) -> None:
    """A ranking, seen by KTO, has replies that won and lost: only the one in the middle is neither good nor bad."""
    rows = [row("A.", "B.", weight=1 / 3), row("A.", "C.", weight=1 / 3), row("B.", "C.", weight=1 / 3)]
    config = prepared(tmp_path, tmp_path, rows, [{"method": "kto", "dataset": "preference"}])
    checked = check(absolute(tmp_path, config.stages[0]), template(SHAPES[0].jinja), 512)
    assert checked.counts() == {"undecided": 1} and len(checked.examples) == 2


def test_sft_learns_no_reply_that_lost(tmp_path: Path) -> None:
    """Of a ranking those that won more than they lost; of a changed mind what was chosen last."""
    ranking = [row(better, worse, weight=1 / 6) for better, worse in combinations("ABCD", 2)]
    changed = [row("I am Li.", "An AI.", said="Hi?"), row("An AI.", "I am Li.", said="Hi?", minute=5)]
    config = prepared(tmp_path, tmp_path, [*ranking, *changed], [{"method": "sft", "dataset": "preference"}])
    checked = check(absolute(tmp_path, config.stages[0]), template(SHAPES[0].jinja), 512)
    learnt = [(one.chosen.content, round(one.weight, 2)) for one in checked.examples if one.chosen]
    assert learnt == [("A", 0.5), ("B", 0.17), ("An AI.", 1.0)]
    assert checked.counts() == {"contradictory": 1}


def test_a_rejected_reply_is_no_fault_to_sft(tmp_path: Path) -> None:
    """It is not learnt, so it may be as long or as empty as it is."""
    rows = [row("I am Li.", " "), row("Li!", LONG, minute=1)]
    config = prepared(tmp_path, tmp_path, rows, [{"method": "sft", "dataset": "preference"}])
    checked = check(absolute(tmp_path, config.stages[0]), template(SHAPES[0].jinja), 200)
    assert checked.findings == [] and len(checked.examples) == 2


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A broken row in the file is a finding with its reason; the rows beside it are used."""
    config = prepared(tmp_path, tmp_path, PAIRS)
    stage = absolute(tmp_path, config.stages[0])
    file = Path(stage["file"])
    file.write_text(file.read_text().replace('"from":"human"', '"from":"nobody"', 1))
    checked = check(stage, template(SHAPES[0].jinja), 512)
    assert [finding.code for finding in checked.findings] == ["unreadable"]
    assert "nobody" in checked.findings[0].detail and len(checked.examples) == 2


def test_characters_that_the_tokenizer_does_not_know_are_told(tmp_path: Path) -> None:
    """A tokenizer without bytes turns what it does not know into one token for all: said, and kept."""
    form = _words({"[UNK]": 0, "Li": 1, "AI": 2}, unknown="[UNK]", template="{{ m.content + ' ' }}")
    checked = _checked(tmp_path, "simpo", [row("Li", "魑魅"), row("Li Li", "AI")], form)
    found = [(finding.code, finding.line, finding.detail) for finding in checked.findings]
    first, second = (example.line for example in checked.examples)
    where = [(first, "prompt"), (first, "rejected"), (second, "prompt")]
    assert found == [("unknown_tokens", line, name) for line, name in where]


def test_a_token_that_ends_turns_is_not_taken_for_an_unknown_one(tmp_path: Path) -> None:
    """Some tokenizers have one token for both, so it tells nothing."""
    form = _words({"END": 0, "Li": 1, "AI": 2}, unknown="END", template="{{ m.content + ' END ' }}")
    assert _checked(tmp_path, "simpo", [row("Li", "魑魅"), row("Li Li", "AI")], form).findings == []


def _words(vocabulary: dict[str, int], unknown: str, template: str) -> ChatTemplate:
    """A chat template over a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token=unknown)  # type: ignore[no-untyped-call]
    tokenizer.chat_template = "{% for m in messages %}" + template + "{% endfor %}"
    return ChatTemplate.of(tokenizer)


def test_a_row_that_does_not_fit_is_left_out_whole(tmp_path: Path) -> None:
    """A row of exactly max_length tokens is used; one token more on either side, and it is left out and counted."""
    form = template(SHAPES[0].jinja)
    (example,) = _checked(tmp_path / "all", "simpo", [row("Li" * 20, "AI" * 20)], form).examples
    rows = [row("Li" * 20, "AI" * 20), row("Li" * 20, "AI" * 20 + "!"), row("Li" * 20 + "!", "AI" * 20)]
    checked = _checked(tmp_path / "exact", "simpo", rows, form, example.tokens)
    assert [one.line for one in checked.examples] == [example.line]
    assert checked.counts() == {"too_long": 2} and checked.tokens_left_out == 2 * (example.tokens + 1)


def test_the_report_shows_what_the_model_will_see(tmp_path: Path) -> None:
    """Counts of rows, tokens and steps, each finding with its line, and the first rows to the last character."""
    form = template(SHAPES[0].jinja)
    config = prepared(tmp_path, tmp_path, [*PAIRS, row("Same.", "Same.")])
    stage = absolute(tmp_path, config.stages[0])
    told: dict[str, Any] = report(stage, check(stage, form, 512), frozenset(), 0)
    assert (told["rows"], told["examples"], told["steps"], told["counts"]) == (4, 3, 2, {"equal_sides": 1})
    assert [(one["code"], one["action"]) for one in told["findings"]] == [("equal_sides", "left_out")]
    first = told["rendered"][0]
    assert first["prompt"].endswith("<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n")
    assert (first["chosen"], first["rejected"]) == ("I am Li, 0.<|im_end|>", "I am an AI, 0.<|im_end|>")
    assert first["tokens"] == len(first["prompt"].encode()) + len(first["rejected"].encode())
    assert told["tokens"]["chosen"] == sum(len(f"I am Li, {number}.<|im_end|>") for number in range(3))
