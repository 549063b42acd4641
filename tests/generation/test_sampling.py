"""The decode loop: its texts, its budgets, its end; on the tiny model and on a scripted one."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from prefanno.errors import GenerationCancelled
from prefanno.generation.config import GenerationConfig, Reply
from prefanno.generation.sampling import Decoder, seed_of
from prefanno.prompting import THINK_TAG, ChatTemplate, conversation
from tests.generation.conftest import Weights
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


def _decoder(weights: Weights, check: Callable[[], None] = lambda: None) -> Decoder:
    return Decoder(weights.model, weights.tokenizer, ChatTemplate.of(weights.tokenizer), check)


def _run(weights: Weights, config: GenerationConfig, seeds: list[int]) -> list[Reply]:
    decoder = _decoder(weights)
    return decoder.run(decoder.template.prompt(MESSAGES, config.enable_thinking), config, seeds)


def _write(
    weights: Weights, write: Callable[[str], str], config: GenerationConfig, template: str | None = None
) -> tuple[Reply, str]:
    """The reply when the model writes so, and all that it wrote, forced text included."""
    tokenizer = copy.deepcopy(weights.tokenizer)
    if template:
        tokenizer.chat_template = template
    model = Scripted(tokenizer, write)
    decoder = Decoder(model, tokenizer, ChatTemplate.of(tokenizer), lambda: None)
    (reply,) = decoder.run(decoder.template.prompt(MESSAGES, config.enable_thinking), config, [0])
    return reply, model.text.rpartition(ASKED)[2]


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
    assert [_run(restless, config, [seed])[0] for seed in (11, 12, 13, 14, 15)] == together


def test_greedy_equals_transformers_own_generate(weights: Weights) -> None:
    """With top_k 1 the text is the one that transformers' `generate` finds greedily, with the same penalty."""
    config = replace(PLAIN, top_k=1)
    decoder = _decoder(weights)
    prompt = decoder.template.prompt(MESSAGES, thinking=False)
    ids = weights.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    expected = weights.model.generate(
        ids, do_sample=False, max_new_tokens=64, repetition_penalty=config.repetition_penalty
    )
    text = weights.tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    assert [reply.content for reply in decoder.run(prompt, config, [1, 2])] == [text.replace("\0", "").strip()] * 2


def test_sampling_equals_transformers_own_generate(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Penalty, temperature, top-k and top-p leave the same tokens, in the same order, as transformers' `generate`.

    Both draw by a rule in place of chance: the least likely token that the settings leave.
    """
    import torch

    def least_likely(probabilities: Any, num_samples: int, generator: object = None) -> Any:
        assert num_samples == 1
        del generator
        return probabilities.masked_fill(probabilities == 0, 2.0).argmin(dim=-1, keepdim=True)

    monkeypatch.setattr(torch, "multinomial", least_likely)
    config = replace(PLAIN, temperature=0.7, top_p=0.6, top_k=20, repetition_penalty=1.3)
    decoder = _decoder(weights)
    prompt = decoder.template.prompt(MESSAGES, thinking=False)
    ids = weights.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    settings = {"temperature": 0.7, "top_p": 0.6, "top_k": 20, "repetition_penalty": 1.3}
    expected = weights.model.generate(ids, do_sample=True, max_new_tokens=64, **settings)
    text = weights.tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    assert decoder.run(prompt, config, [1])[0].content == text.replace("\0", "").strip()
    other = decoder.run(prompt, replace(config, top_p=0.9), [1])[0].content
    assert other != decoder.run(prompt, config, [1])[0].content  # control: a setting that differs shows


@pytest.mark.parametrize("limit", [64, 65, 150])
def test_budgets_hold(weights: Weights, limit: int) -> None:
    """A candidate that never stops gets max_new_tokens; its thought, closing tag included, at most half of them."""
    for write in (lambda _text: "a", lambda text: "a" if "</think>" in text.rpartition(ASKED)[2] else "<"):
        reply, text = _write(weights, write, replace(THINKING, max_new_tokens=limit))
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
    assert reply == Reply("I wonder", "I am Li.", "stop", len("I wonder</think>\n\nI am Li.") + 1)
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
    write = plan(OPENED, "\n \nfirst line\nsecond line", then="y")
    config = replace(THINKING, max_new_tokens=200)
    assert _write(weights, write, config)[0].thinking == "first line"
    knowing, _ = _write(weights, write, config, QWEN_LIKE)
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
    write = plan(OPENED if thought else ASKED, f"{thought}{nothing}<|im_end|>")
    reply, _ = _write(weights, write, config, QWEN_LIKE)
    assert reply.content == "x"
    assert reply.finish_reason == "stop"


def test_a_thought_that_was_not_asked_for_is_split_off(weights: Weights) -> None:
    """A model that thinks unasked loses its tags; what it wrote before the closing tag is not part of the reply."""
    reply, _ = _write(weights, plan(ASKED, "<think>secret</think>Hello<|im_end|>"), PLAIN)
    assert reply.content == "Hello"
    assert not THINK_TAG.search(reply.thinking or "")


def test_a_cancelled_run_ends_within_one_step(weights: Weights) -> None:
    """The check is asked at every token; when it raises, the model is not called again."""
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks == 5:
            raise GenerationCancelled

    model = Scripted(weights.tokenizer, lambda _text: "a")
    decoder = Decoder(model, weights.tokenizer, ChatTemplate.of(weights.tokenizer), check)
    with pytest.raises(GenerationCancelled):
        decoder.run("hello", PLAIN, [1])
    assert (checks, model.calls) == (5, 5)


def test_every_configured_end_ends_a_reply(weights: Weights) -> None:
    """A model with several tokens that end its turn stops at each of them; without any, the tokenizer's counts."""
    for configured, end in (([2, 0], "<|endoftext|>"), ([2, 0], "<|im_end|>"), (2, "<|im_end|>"), (None, "<|im_end|>")):
        model = Scripted(weights.tokenizer, plan("say:", f"hi{end}"))
        model.generation_config.eos_token_id = configured
        decoder = Decoder(model, weights.tokenizer, ChatTemplate.of(weights.tokenizer), lambda: None)
        assert decoder.run("say:", PLAIN, [1]) == [Reply(None, "hi", "stop", 3)]


def test_seeds_are_distinct_and_fixed() -> None:
    """Each candidate and each redraw has its own seed, the same in every process and on every machine."""
    seeds = {seed_of(seed, ordinal, attempt) for seed in range(20) for ordinal in range(10) for attempt in range(3)}
    assert len(seeds) == 600
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(7, 0, 0) == 7249667277674472584
