"""A model in memory: its replies, its adapters, its end."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefanno.errors import InvalidInput
from prefanno.generation import model as module
from prefanno.generation.config import GenerationConfig, Reply
from prefanno.generation.model import LocalModel
from prefanno.generation.sampling import Decoder, seed_of
from prefanno.prompting import conversation
from tests import tiny

CONFIG = GenerationConfig("You are Li.", max_new_tokens=64, num_responses=3)
PEFTS_OWN = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"


@pytest.fixture
def model(tiny_model: Path) -> Iterator[LocalModel]:
    """The tiny model, loaded, and let go of at the end."""
    loaded = LocalModel(str(tiny_model))
    yield loaded
    loaded.free()


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two random adapters for the tiny model, as peft saves them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        base: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        folders.append(tmp_path_factory.mktemp("adapters") / f"li-simpo-{seed}")
        get_peft_model(base, lora).save_pretrained(str(folders[-1]))
    return folders[0], folders[1]


class _Decoders:
    """Stands in for the decoder: gives out these contents, in order, and notes the seeds of each run."""

    def __init__(self, *contents: str) -> None:
        self.contents = list(contents)
        self.runs: list[list[int]] = []

    def __call__(self, *_arguments: object) -> "_Decoders":
        return self

    def run(self, _prompt: str, _config: GenerationConfig, seeds: list[int]) -> list[Reply]:
        """A reply for each seed."""
        self.runs.append(seeds)
        return [Reply(f"thought {seed}", self.contents.pop(0), "stop", 1) for seed in seeds]


def _drawn(model: LocalModel, monkeypatch: pytest.MonkeyPatch, *contents: str) -> tuple[list[str], list[list[int]]]:
    """What comes of these draws: the contents, and which seeds were drawn in each run."""
    decoders = _Decoders(*contents)
    monkeypatch.setattr(module, "Decoder", decoders)
    replies = model.generate(CONFIG, "?", [], 7)
    assert decoders.contents == []
    return [reply.content for reply in replies], decoders.runs


FIRST = [seed_of(7, ordinal, 0) for ordinal in range(3)]


def test_replies_that_differ_are_drawn_once(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no reply resembles another, there is one run, with a seed for each candidate."""
    assert _drawn(model, monkeypatch, "one", "two", "three") == (["one", "two", "three"], [FIRST])


def test_near_duplicates_are_drawn_again(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that a person would take for an earlier one is drawn again, alone, with another seed."""
    long = "The quick brown fox jumps over the lazy dog."
    contents, runs = _drawn(model, monkeypatch, long, "two", f"  {long.upper()}!", "three")
    assert contents == [long, "two", "three"]
    assert runs == [FIRST, [seed_of(7, 2, 1)]]


def test_near_duplicates_are_drawn_again_at_most_twice(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that has only one thing to say says it, after two more tries for each candidate that repeats it."""
    contents, runs = _drawn(model, monkeypatch, *(["same"] * 7))
    assert contents == ["same"] * 3
    assert runs == [FIRST, [seed_of(7, 1, 1), seed_of(7, 2, 1)], [seed_of(7, 1, 2), seed_of(7, 2, 2)]]


def test_an_empty_reply_is_drawn_again(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate without a word is drawn again; if it stays empty, it says what silence looks like."""
    contents, runs = _drawn(model, monkeypatch, "", "two", "three", "one")
    assert (contents, len(runs)) == (["one", "two", "three"], 2)
    contents, runs = _drawn(model, monkeypatch, "", "two", "three", "", "")
    assert (contents, len(runs)) == ([module.FALLBACK, "two", "three"], 3)


def test_a_cold_model_repeats_itself_and_is_redrawn(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With top_k 1 all candidates are equal: the real decoder runs three times, and there are still all candidates."""
    sizes = []
    run = Decoder.run

    def counted(self: Decoder, prompt: str, config: GenerationConfig, seeds: list[int]) -> list[Reply]:
        sizes.append(len(seeds))
        return run(self, prompt, config, seeds)

    monkeypatch.setattr(Decoder, "run", counted)
    replies = model.generate(replace(CONFIG, top_k=1), "?", [], 7)
    assert sizes == [3, 2, 2]
    assert len(replies) == 3 and len({reply.content for reply in replies}) == 1
    sizes.clear()
    model.generate(CONFIG, "?", [], 7)
    assert sizes == [3]  # control: a warm one is drawn once


def test_the_same_seed_gives_the_same_candidates(model: LocalModel) -> None:
    """Same settings, message, context and seed: same candidates; any of them changed: others."""
    first = model.generate(CONFIG, "Who are you?", [], 7)
    assert model.generate(CONFIG, "Who are you?", [], 7) == first
    assert model.generate(CONFIG, "Who are you?", [], 8) != first
    assert model.generate(CONFIG, "Who?", [], 7) != first
    context: Any = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert model.generate(CONFIG, "Who are you?", context, 7) != first
    assert model.generate(replace(CONFIG, system_prompt="You are Mia."), "Who are you?", [], 7) != first


@pytest.mark.parametrize("thinking", [True, False])
def test_a_prompt_that_just_fits_is_answered(tiny_model: Path, model: LocalModel, thinking: bool) -> None:
    """Prompt and reply may fill the model's context to the last token; one token more is refused, with the counts."""
    del tiny_model
    config = replace(CONFIG, enable_thinking=thinking, num_responses=2)
    empty = model.template.prompt(conversation("You are Li.", [], "x"), thinking)
    room = model.context_length - 64 - len(model.tokenizer(empty, add_special_tokens=False).input_ids) + 1
    assert len(model.generate(config, "x" * room, [], 7)) == 2
    with pytest.raises(InvalidInput) as refused:
        model.generate(config, "x" * (room + 1), [], 7)
    (text,) = refused.value.fields["message"]
    assert f"{model.context_length - 64 + 1} 个 token" in text
    assert "max_new_tokens=64" in text and f"上限 {model.context_length}" in text


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    """A base model that is no chat model cannot be loaded, and the error says what to choose instead."""
    tiny.save(tmp_path / "plain", template="")
    with pytest.raises(ValueError, match="choose an instruct model"):
        LocalModel(str(tmp_path / "plain"))


@pytest.mark.filterwarnings(PEFTS_OWN)
def test_an_adapter_changes_the_replies_and_can_be_taken_off(model: LocalModel, adapters: tuple[Path, Path]) -> None:
    """Each adapter has replies of its own; the same one gives the same again, and without any they are the base's."""
    texts = {}
    for name, adapter in (("bare", None), ("first", adapters[0]), ("second", adapters[1])):
        model.use(str(adapter) if adapter else None)
        texts[name] = model.generate(CONFIG, "?", [], 7)
    assert texts["bare"] != texts["first"] != texts["second"] != texts["bare"]
    for name, adapter in (("first", adapters[0]), ("bare", None), ("bare", None), ("second", adapters[1])):
        model.use(str(adapter) if adapter else None)
        assert model.generate(CONFIG, "?", [], 7) == texts[name]


@pytest.mark.filterwarnings(PEFTS_OWN)
def test_an_adapter_that_is_not_there_leaves_the_bare_base(
    model: LocalModel, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    """After an adapter that could not be put on, the base is usable, and so is another adapter."""
    bare = model.generate(CONFIG, "?", [], 7)
    with pytest.raises((OSError, ValueError)):
        model.use(str(tmp_path / "nowhere"))
    assert model.generate(CONFIG, "?", [], 7) == bare
    model.use(str(adapters[0]))
    assert model.generate(CONFIG, "?", [], 7) != bare


@pytest.mark.filterwarnings(PEFTS_OWN)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_free_lets_go_of_all_weights(tiny_model: Path, adapters: tuple[Path, Path], with_adapter: bool) -> None:
    """After free, nothing holds the weights any more; before, they are there."""
    model = LocalModel(str(tiny_model))
    if with_adapter:
        model.use(str(adapters[0]))
    model.generate(CONFIG, "?", [], 7)
    weights = [weakref.ref(parameter) for parameter in model._model.parameters()]
    gc.collect()
    assert len(weights) > 10 and all(weight() is not None for weight in weights)
    model.free()
    assert [weight for weight in weights if weight() is not None] == []


def test_where_the_model_is(model: LocalModel) -> None:
    """A loaded model says its device and how much it can attend to; without a GPU no GPU memory is told of."""
    assert model.context_length == 512
    assert model.device.split(":")[0] == module.device()
    if module.device() != "cuda":
        assert module.gpu_memory() == {}
