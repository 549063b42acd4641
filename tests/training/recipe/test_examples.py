"""Rows → examples, their order in training, and those kept back."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefanno.prompting import conversation
from prefanno.rows import Row
from prefanno.training.recipe.examples import (
    ENOUGH,
    MOST,
    Example,
    held_out,
    merged,
    of_row,
    scheduled,
    split,
    together,
)
from tests.properties import unhurried
from tests.test_prompting import QWEN
from tests.tiny import CHATML
from tests.training.recipe.rows import PERSONA, Thoughts, row, template

FORMS = {"chatml": template(CHATML), "qwen": template(QWEN)}
each_form = pytest.mark.parametrize("form", FORMS)


def _one(given_row: Row, method: str, form: str) -> Example:
    (example,) = of_row(1, given_row, method, FORMS[form])
    return example


def _example(prompt: str = "p", weight: float = 1.0, line: int = 1) -> Example:
    return Example(line, prompt, prompt, [1], None, None, weight, row("a", "b").created_at)


@each_form
@pytest.mark.parametrize("thoughts", [("A guest!", "A user."), (None, None)])
def test_a_pair_is_rendered_as_the_model_is_asked(form: str, thoughts: Thoughts) -> None:
    """Training sees the very prompt that generating makes, and after it thought, closing tag, reply and end."""
    example = _one(row("I am Li.", "I am an AI.", thoughts), "simpo", form)
    asked = FORMS[form].prompt(conversation(PERSONA, [], "Who are you?"), thinking=thoughts[0] is not None)
    assert example.prompt == asked and not example.one_sided
    before = [f"{thought}\n</think>\n\n" if thought else "" for thought in thoughts]
    assert example.chosen and example.chosen.text == f"{before[0]}I am Li.<|im_end|>"
    assert example.rejected and example.rejected.text == f"{before[1]}I am an AI.<|im_end|>"
    assert FORMS[form].tokenizer.decode(example.prompt_ids + example.chosen.ids) == asked + example.chosen.text


@each_form
@pytest.mark.parametrize("thoughts", [("A riddle.", None), (None, "Duty.")])
def test_a_thought_on_one_side_only_is_not_trained(form: str, thoughts: Thoughts) -> None:
    """A pair with one thought is trained without it, else thinking itself would be preferred; the example says so."""
    example = _one(row("I am Li.", "I am an AI.", thoughts), "simpo", form)
    assert example.one_sided
    assert [reply.text for reply in example.sides.values()] == ["I am Li.<|im_end|>", "I am an AI.<|im_end|>"]


@each_form
def test_a_conversation_teaches_each_of_its_replies(form: str) -> None:
    """SFT learns every reply that has a question before it, each after the turns before it, and the last thought."""
    context = [
        {"role": "assistant", "content": "Welcome!"},
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Ho!"},
    ]
    talk = row("I am Li.", None, ("Fun.", None), mode="multi", context=context)
    earlier, last = of_row(1, talk, "sft", FORMS[form])
    assert earlier.chosen and earlier.chosen.text == "Ho!<|im_end|>"
    assert earlier.prompt == FORMS[form].prompt(conversation(PERSONA, context[:1], "Hi?"), thinking=False)  # type: ignore[arg-type]
    assert last.chosen and last.chosen.text == "Fun.\n</think>\n\nI am Li.<|im_end|>"


def test_methods_take_the_sides_they_learn_from() -> None:
    """KTO and SFT take each side of a pair by itself, the others both."""
    pair, bad = row("A.", "B."), row(None, "B.")
    form = FORMS["chatml"]
    for method in ("kto", "sft"):
        assert [list(one.sides) for one in of_row(1, pair, method, form)] == [["chosen"], ["rejected"]]
        assert [list(one.sides) for one in of_row(1, bad, method, form)] == [["rejected"]]
    assert [list(one.sides) for one in of_row(1, pair, "simpo", form)] == [["chosen", "rejected"]]


def test_a_long_conversation_is_learnt_from_its_beginning() -> None:
    """Every reply of it, however many there are."""
    context = [{"role": role, "content": f"{number}"} for number in range(120) for role in ("user", "assistant")]
    examples = list(of_row(1, row("Bye.", None, mode="multi", context=context), "sft", FORMS["chatml"]))
    assert [one.chosen.content for one in examples if one.chosen] == [*(str(number) for number in range(120)), "Bye."]


def test_each_epoch_has_every_example_once_in_another_order() -> None:
    """Examples of weight 1 come once in each epoch, shuffled by the seed: the same seed, the same order."""
    examples = [_example(line=line) for line in range(20)]
    order = [example.line for example in scheduled(examples, 3, 0)]
    epochs = [order[start : start + 20] for start in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs) and epochs[0] != epochs[1]
    assert order == [example.line for example in scheduled(examples, 3, 0)]
    assert order != [example.line for example in scheduled(examples, 3, 1)]


@unhurried
@given(
    st.lists(st.sampled_from([1.0, 0.5, 1 / 3, 1 / 6]), min_size=1, max_size=30), st.integers(1, 8), st.integers(0, 99)
)
def test_an_example_comes_as_often_as_its_weight_says(weights: list[float], epochs: int, seed: int) -> None:
    """Over all epochs each example comes its weight times the epochs, to the next whole number up or down."""
    order = scheduled([_example(weight=weight, line=line) for line, weight in enumerate(weights)], epochs, seed)
    came = Counter(example.line for example in order)
    if sum(came.values()) == 1:
        return  # so little that one is taken in place of none
    assert all(abs(came[line] - weight * epochs) < 1 + 1e-6 for line, weight in enumerate(weights))


@pytest.mark.parametrize("epochs", [0.1, 0.5, 2.5])
def test_a_part_of_an_epoch_takes_a_part_of_the_examples(epochs: float) -> None:
    """Half an epoch has about half of the examples; and something is always left to train on."""
    order = scheduled([_example(line=line) for line in range(200)], epochs, 0)
    assert abs(len(order) - 200 * epochs) < 30
    assert len(scheduled([_example(weight=0.1) for _ in range(5)], 0.1, 0)) == 1


@pytest.mark.parametrize(
    ("examples", "stage", "expected"),
    [
        (1, {}, (1, 4)),
        (3, {}, (3, 4)),
        (10, {}, (4, 10)),
        (1, {"loss": "kto"}, (2, 2)),
        (10, {"accumulation": 4}, (4, 3)),
    ],
)
def test_a_batch_holds_an_example_once(examples: int, stage: dict[str, Any], expected: tuple[int, int]) -> None:
    """Few examples make small batches and so a step of each epoch at least; KTO has two replies at least."""
    order = scheduled([_example(line=line) for line in range(examples)], 4, 0)
    assert together(order, {"batch_size": 4, "accumulation": 1, **stage}) == expected


def _weights(rows: list[Row], method: str) -> dict[tuple[str, str], float]:
    """Side and reply → weight, of what a method that learns from single replies gets of these rows."""
    given_rows = [example for line, one in enumerate(rows) for example in of_row(line, one, method, FORMS["chatml"])]
    found = {}
    for example in merged(given_rows, method)[0]:
        ((side, reply),) = example.sides.items()
        found[side, reply.content] = round(example.weight, 4)
    return found


def test_the_best_of_several_counts_as_a_whole_choice() -> None:
    """Best of four is three pairs of a third each: the best is learnt once, and each of the others is a third bad."""
    best = [row("A.", other, weight=1 / 3) for other in ("B.", "C.", "D.")]
    bad = {("rejected", other): 0.3333 for other in ("B.", "C.", "D.")}
    assert _weights(best, "sft") == {("chosen", "A."): 1.0, **bad}
    assert _weights(best, "kto") == {("chosen", "A."): 1.0, **bad}


def test_a_ranking_is_good_in_its_upper_half_and_bad_in_its_lower() -> None:
    """Of four in a row the first won three times, the second once more than it lost, and so down."""
    order = ["A.", "B.", "C.", "D."]
    pairs = [row(better, worse, weight=1 / 6) for place, better in enumerate(order) for worse in order[place + 1 :]]
    assert _weights(pairs, "kto") == {
        ("chosen", "A."): 0.5,
        ("chosen", "B."): 0.1667,
        ("rejected", "C."): 0.1667,
        ("rejected", "D."): 0.5,
    }
    middle = [row("A.", "B.", weight=1 / 3), row("A.", "C.", weight=1 / 3), row("B.", "C.", weight=1 / 3)]
    assert ("chosen", "B.") not in _weights(middle, "kto") and ("rejected", "B.") not in _weights(middle, "kto")


def test_a_conversation_counts_as_one_whatever_its_pairs() -> None:
    """A ranked conversation has a pair's weight in its row; SFT learns all of it."""
    talk = row("A.", "B.", mode="multi", weight=1 / 6)
    assert _weights([talk], "sft") == {("chosen", "A."): 1.0, ("rejected", "B."): 1.0}


def test_no_question_is_on_both_sides() -> None:
    """What is kept back has questions of its own, about the share asked for, never more than the most."""
    examples = [_example(f"prompt {number // 3}", line=number) for number in range(90)]
    learnt, kept = split(examples, held_out([examples], 0.1, 0))
    assert len(learnt) + len(kept) == 90 and len(kept) == 9
    assert not {one.key for one in learnt} & {one.key for one in kept}
    many = [_example(f"prompt {number}", line=number) for number in range(3000)]
    assert len(held_out([many], 0.1, 0)) == MOST


def test_a_question_with_most_of_the_rows_is_trained_on() -> None:
    """A question that alone has more rows than are wanted is never kept back."""
    examples = [_example(f"prompt {max(0, number - 89)}") for number in range(100)]
    for seed in range(20):
        learnt, kept = split(examples, held_out([examples], 0.1, seed))
        assert len(kept) <= 10 <= len(learnt)


def test_of_few_rows_none_is_kept_back() -> None:
    """Below `ENOUGH` examples, with one question only, or where no share is asked for, all are trained on."""
    few = [_example(f"prompt {number}") for number in range(ENOUGH - 1)]
    alike = [_example() for _ in range(100)]
    enough = [_example(f"prompt {number}") for number in range(ENOUGH)]
    for examples, share in ((few, 0.5), (alike, 0.5), (enough, 0.0)):
        assert held_out([examples], share, 0) == frozenset()
    assert held_out([enough], 0.1, 0)


def test_no_stage_is_left_without_rows() -> None:
    """What would leave a small stage nothing to train on is not held out, in no stage."""
    many = [_example(f"prompt {number}") for number in range(100)]
    for seed in range(20):
        small = [_example(f"prompt {seed}")]
        keys = held_out([many, small], 0.9, seed)
        assert split(small, keys) == (small, []) and split(many, keys)[1]
