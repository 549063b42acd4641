"""What is drawn and what comes of it: texts, budgets, ends; on the tiny model and on a scripted one."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from prefanno.generation.batch import Batch
from prefanno.generation.config import GenerationConfig, Reply
from prefanno.generation.sampling import Sampler, seed_of
from prefanno.generation.writing import Row
from prefanno.prompting import THINK_TAG, conversation
from tests.generation.conftest import Weights
from tests.generation.direct import vocabulary, write
from tests.generation.scripted import Scripted, plan

THINKING = GenerationConfig("You are Li.", max_new_tokens=64)
PLAIN = replace(THINKING, enable_thinking=False)
MESSAGES = conversation("You are Li.", [], "Who are you?")
OPENED = "<|im_start|>assistant\n<think>\n"  # the end of a prompt that asks for a thought
ASKED = "<|im_start|>assistant\n"
QWEN_LIKE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}{{ '<think>\n' + "
    "m.reasoning_content + '\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _run(weights: Weights, config: GenerationConfig, seeds: list[int]) -> list[Reply]:
    known = vocabulary(weights.model, weights.tokenizer)
    prompt = known.template.prompt(MESSAGES, config.enable_thinking)
    rows = [Row(known, config, ordinal, seed) for ordinal, seed in enumerate(seeds, 1)]
    return write(weights.model, known, [(prompt, rows)])


def _write(
    weights: Weights, plan: Callable[[str], str], config: GenerationConfig, template: str | None = None
) -> tuple[Reply, str]:
    """The reply when the model writes so, and all that it wrote, forced text included."""
    tokenizer = copy.deepcopy(weights.tokenizer)
    if template:
        tokenizer.chat_template = template
    model = Scripted(tokenizer, plan)
    known = vocabulary(model, tokenizer)
    (reply,) = write(
        model, known, [(known.template.prompt(MESSAGES, config.enable_thinking), [Row(known, config, 1, 0)])]
    )
    return reply, model.text.rpartition(ASKED)[2]


def _rounded(replies: list[Reply]) -> list[Reply]:
    """Equal to those whose texts are the same; the last digits of the log-probability may differ."""
    about: list[Any] = [pytest.approx(reply.mean_logprob, abs=1e-4) for reply in replies]
    return [replace(reply, mean_logprob=mean) for reply, mean in zip(replies, about, strict=True)]


@pytest.mark.parametrize("config", [THINKING, PLAIN], ids=["thinking", "plain"])
def test_the_same_seeds_give_the_same_replies(weights: Weights, config: GenerationConfig) -> None:
    """A seed decides its reply; another seed gives another."""
    assert _run(weights, config, [1, 2, 3]) == _run(weights, config, [1, 2, 3])
    texts = {reply.content for reply in _run(weights, config, [1, 2, 3])}
    assert len(texts) == 3


@pytest.mark.parametrize("config", [THINKING, PLAIN], ids=["thinking", "plain"])
def test_a_text_does_not_depend_on_its_neighbours(weights: Weights, config: GenerationConfig) -> None:
    """In float32 a candidate reads the same alone and among others that end before it, after it, or think longer."""
    restless = Weights(copy.deepcopy(weights.model), weights.tokenizer)
    restless.model.generation_config.eos_token_id = list(range(2, 20))  # a turn ends every ten tokens or so
    together = _run(restless, config, [11, 12, 13, 14, 15])
    assert len({reply.tokens for reply in together}) > 2  # they did leave the batch at different times
    assert [_run(restless, config, [seed])[0] for seed in (11, 12, 13, 14, 15)] == _rounded(together)


def test_a_text_does_not_depend_on_other_prompts(weights: Weights) -> None:
    """In float32 the candidates of eight prompts of different lengths read the same in one batch and each alone."""
    known = vocabulary(weights.model, weights.tokenizer)
    prompts = ["x" * length for length in (3, 90, 17, 300, 1, 44, 45, 200)]
    configs = [replace(PLAIN, max_new_tokens=64 + number, temperature=0.5 + number / 10) for number in range(8)]

    def asked(number: int) -> tuple[str, list[Row]]:
        return prompts[number], [Row(known, configs[number], ordinal, 100 * number + ordinal) for ordinal in range(4)]

    together = write(weights.model, known, [asked(number) for number in range(8)])
    alone = [reply for number in range(8) for reply in write(weights.model, known, [asked(number)])]
    assert alone == _rounded(together)


def test_greedy_equals_transformers_own_generate(weights: Weights) -> None:
    """With top_k 1 the text is the one that transformers' `generate` finds greedily, with the same penalty."""
    config = replace(PLAIN, top_k=1)
    prompt = vocabulary(weights.model, weights.tokenizer).template.prompt(MESSAGES, thinking=False)
    ids = weights.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    expected = weights.model.generate(
        ids, do_sample=False, max_new_tokens=64, repetition_penalty=config.repetition_penalty
    )
    text = weights.tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    assert [reply.content for reply in _run(weights, config, [1, 2])] == [text.replace("\0", "").strip()] * 2


@pytest.mark.parametrize("top_p", [0.05, 0.6, 1.0])
def test_sampling_leaves_what_transformers_leaves(top_p: float) -> None:
    """Penalty, temperature, top-k and top-p give each token the probability that transformers' processors give it.

    A thousand evenly spread numbers stand for chance, so how often a token comes is its probability.
    """
    import torch
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    config = replace(PLAIN, temperature=0.7, top_p=top_p, top_k=20, repetition_penalty=1.3)
    scores = torch.randn(1, 100, generator=torch.Generator().manual_seed(1)) * 3
    read: Any = torch.tensor([scores[0].topk(5).indices.tolist()])
    process = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.3),
            TemperatureLogitsWarper(0.7),
            TopKLogitsWarper(20),
            TopPLogitsWarper(top_p),
        ]
    )
    expected = process(read, scores.clone()).softmax(dim=-1)[0]
    drawn = 1000
    sampler = Sampler([config] * drawn, [read[0]] * drawn, [], scores.expand(drawn, -1))
    luck = [(number + 0.5) / drawn for number in range(drawn)]
    tokens, logprobs = sampler.draw(scores.expand(drawn, -1), [True] * drawn, luck)
    counted = torch.bincount(torch.tensor(tokens), minlength=100) / drawn
    assert torch.allclose(counted, expected, atol=1.5 / drawn)
    assert torch.allclose(torch.tensor(logprobs), scores[0].log_softmax(dim=-1)[tokens], atol=1e-5)
    other = process(read, scores.clone() / 2).softmax(dim=-1)[0]
    assert top_p < 0.1 or not torch.allclose(counted, other, atol=1.5 / drawn)  # control: other scores show


def test_the_ends_of_luck_are_tokens_that_are_left() -> None:
    """0 and the largest number below 1 choose the likeliest and the least likely token that the settings leave."""
    import torch

    scores = torch.tensor([[3.0, 2.0, 1.0, -50.0], [3.0, 2.0, 1.0, -50.0]])
    sampler = Sampler([replace(PLAIN, top_k=3, top_p=1.0)] * 2, [torch.tensor([], dtype=torch.long)] * 2, [], scores)
    assert sampler.draw(scores, [True, True], [0.0, 1 - 2**-53])[0] == [0, 2]


def test_each_row_has_its_own_settings() -> None:
    """Rows of one batch may be as different as their requests."""
    import torch

    scores = torch.tensor([[3.0, 2.9, 2.8]]).expand(3, -1)
    configs = [replace(PLAIN, top_k=1), replace(PLAIN, top_p=0.1), replace(PLAIN, top_p=1.0)]
    sampler = Sampler(configs, [torch.tensor([2])] * 3, [0], scores)
    assert sampler.draw(scores, [True] * 3, [0.999] * 3)[0] == [0, 0, 2]
    assert sampler.draw(scores, [False] * 3, [0.0] * 3)[0] == [1, 1, 1]
    sampler.keep(torch.tensor([2]))
    assert sampler.draw(scores[:1], [True], [0.999])[0] == [2]


@pytest.mark.parametrize("limit", [64, 65, 150])
def test_budgets_hold(weights: Weights, limit: int) -> None:
    """A candidate that never stops gets max_new_tokens; its thought, closing tag included, at most half of them."""
    for text_of in (lambda _text: "a", lambda text: "a" if "</think>" in text.rpartition(ASKED)[2] else "<"):
        reply, text = _write(weights, text_of, replace(THINKING, max_new_tokens=limit))
        thought, close, _ = text.partition("</think>\n\n")
        assert close
        assert len(f"{thought}{close}".removeprefix("<think>\n")) <= limit // 2
        assert (reply.tokens, reply.finish_reason) == (limit, "length")
        assert len(text.removeprefix("<think>\n")) == limit - 1  # the last token is never read again
        assert reply.thinking and reply.content


def test_budgets_hold_for_random_texts(weights: Weights) -> None:
    """On random text, too, no candidate exceeds its tokens and each has a thought and a reply."""
    for reply in _run(weights, THINKING, list(range(8))):
        assert reply.tokens <= 64
        assert reply.thinking and reply.content
        assert reply.finish_reason == ("length" if reply.tokens == 64 else "stop")


def test_a_thought_ends_by_its_own_tag(weights: Weights) -> None:
    """A thought that the model closes is not closed again, and the reply follows it."""
    reply, text = _write(weights, plan(OPENED, "I wonder</think>\n\nI am Li.<|im_end|>"), THINKING)
    assert (reply.thinking, reply.content, reply.finish_reason) == ("I wonder", "I am Li.", "stop")
    assert reply.tokens == len("I wonder</think>\n\nI am Li.") + 1
    assert text.count("</think>") == 1


def test_a_thought_that_ends_its_turn_is_closed_and_answered(weights: Weights) -> None:
    """When the model ends its turn inside the thought, the thought is closed and the reply still comes."""
    reply, text = _write(weights, plan(OPENED, "I wonder<|im_end|>", then="y"), THINKING)
    assert reply.thinking == "I wonder"
    assert set(reply.content) == {"y"}
    assert text.startswith("<think>\nI wonder\n</think>\n\ny")


def test_a_thought_without_end_is_closed(weights: Weights) -> None:
    """A thought that uses up its budget is closed by force, in the template's own spelling."""
    reply, text = _write(weights, lambda text: "y" if "</think>" in text.rpartition(ASKED)[2] else "t", THINKING)
    assert "\n</think>\n\ny" in text
    assert set(reply.thinking or "") == {"t"} and set(reply.content) == {"y"}


def test_one_line_is_thought_enough_for_a_model_that_was_never_taught_to_think(weights: Weights) -> None:
    """Where the template knows no thoughts, a thought ends with its first line that says something."""
    written = plan(OPENED, "\n \nfirst line\nsecond line", then="y")
    config = replace(THINKING, max_new_tokens=200)
    assert _write(weights, written, config)[0].thinking == "first line"
    knowing, _ = _write(weights, written, config, QWEN_LIKE)
    assert knowing.thinking is not None and knowing.thinking.startswith("first line\nsecond")


@pytest.mark.parametrize(
    "nothing",
    ["", "   \n", "<think>", "</think>", "<think>\n\n</think>\n\n", "<|im_start|>", " <|im_start|>\n"],
)
@pytest.mark.parametrize("config", [THINKING, PLAIN], ids=["thinking", "plain"])
def test_a_reply_does_not_end_before_it_shows_anything(
    weights: Weights, config: GenerationConfig, nothing: str
) -> None:
    """Whatever the model writes that nobody would see, it cannot end its turn before there is a visible reply."""
    thought = "t\n</think>\n\n" if config.enable_thinking else ""
    written = plan(OPENED if thought else ASKED, f"{thought}{nothing}<|im_end|>")
    reply, _ = _write(weights, written, config, QWEN_LIKE)
    assert reply.content == "x"
    assert reply.finish_reason == "stop"


def test_a_thought_that_was_not_asked_for_is_split_off(weights: Weights) -> None:
    """A model that thinks unasked loses its tags; what it wrote before the closing tag is not part of the reply."""
    reply, _ = _write(weights, plan(ASKED, "<think>secret</think>Hello<|im_end|>"), PLAIN)
    assert reply.content == "Hello"
    assert not THINK_TAG.search(reply.thinking or "")


def test_a_row_that_nobody_wants_leaves_within_one_step(weights: Weights) -> None:
    """The model is not called again, and the others go on."""
    model = Scripted(weights.tokenizer, lambda _text: "a")
    known = vocabulary(model, weights.tokenizer)
    row, batch = Row(known, PLAIN, 1, 1), Batch(model, known.ends)
    batch.add(known.encode("hello"), [row])
    for _ in range(5):
        batch.step()
    row.wanted = False
    calls = model.calls
    batch.step()
    assert not batch.is_going and model.calls == calls == 6


def test_every_configured_end_ends_a_reply(weights: Weights) -> None:
    """A model with several tokens that end its turn stops at each of them; without any, the tokenizer's counts."""
    for configured, end in (([2, 0], "<|endoftext|>"), ([2, 0], "<|im_end|>"), (2, "<|im_end|>"), (None, "<|im_end|>")):
        model = Scripted(weights.tokenizer, plan("say:", f"hi{end}"))
        model.generation_config.eos_token_id = configured
        known = vocabulary(model, weights.tokenizer)
        (reply,) = write(model, known, [("say:", [Row(known, PLAIN, 1, 1)])])
        assert (reply.content, reply.finish_reason, reply.tokens) == ("hi", "stop", 3)


def test_seeds_are_distinct_and_fixed() -> None:
    """Each candidate and each redraw has its own seed, the same in every process and on every machine."""
    seeds = {seed_of(seed, ordinal, attempt) for seed in range(20) for ordinal in range(10) for attempt in range(3)}
    assert len(seeds) == 600
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(7, 0, 0) == 7249667277674472584
