"""A model in memory: its replies, its adapters, its end."""

import gc
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefanno.errors import InvalidInput
from prefanno.generation import model as module
from prefanno.generation.config import GenerationConfig, Request
from prefanno.generation.model import LocalModel
from tests import tiny
from tests.generation.direct import answer

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
    one, two = (
        tiny.adapt(tmp_path_factory.mktemp("adapters") / f"li-simpo-{seed}", tiny_model, seed) for seed in (1, 2)
    )
    return one, two


def test_the_same_seed_gives_the_same_candidates(model: LocalModel) -> None:
    """Same settings, message, context and seed: same candidates; any of them changed: others."""
    first = answer(model, CONFIG, "Who are you?")
    assert answer(model, CONFIG, "Who are you?") == first
    assert answer(model, CONFIG, "Who are you?", seed=8) != first
    assert answer(model, CONFIG, "Who?") != first
    context: Any = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert answer(model, CONFIG, "Who are you?", context) != first
    assert answer(model, replace(CONFIG, system_prompt="You are Mia."), "Who are you?") != first


@pytest.mark.parametrize("thinking", [True, False])
def test_a_prompt_that_just_fits_is_answered(tiny_model: Path, model: LocalModel, thinking: bool) -> None:
    """Prompt and reply may fill the model's context to the last token; one token more is refused, with the counts."""
    del tiny_model
    config = replace(CONFIG, enable_thinking=thinking, num_responses=2)
    room = model.context_length - 64 - len(model.prompt(Request("x", [], 7, config))) + 1
    assert len(answer(model, config, "x" * room)) == 2
    with pytest.raises(InvalidInput) as refused:
        answer(model, config, "x" * (room + 1))
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
        texts[name] = answer(model, CONFIG, "?")
    assert texts["bare"] != texts["first"] != texts["second"] != texts["bare"]
    for name, adapter in (("first", adapters[0]), ("bare", None), ("bare", None), ("second", adapters[1])):
        model.use(str(adapter) if adapter else None)
        assert answer(model, CONFIG, "?") == texts[name]


@pytest.mark.filterwarnings(PEFTS_OWN)
def test_a_swap_reads_nothing_of_the_base_and_lets_go_of_the_old_adapter(
    tiny_model: Path, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    """With the base model's files gone an adapter takes another's place, and nothing holds the other's weights."""
    model = LocalModel(str(shutil.copytree(tiny_model, tmp_path / "base")))
    shutil.rmtree(tmp_path / "base")
    base = [weakref.ref(parameter) for parameter in model.weights.parameters()]
    model.use(str(adapters[0]))
    kept = {id(weight()) for weight in base}
    old = [weakref.ref(one) for one in model.weights.parameters() if id(one) not in kept]
    first = answer(model, CONFIG, "?")
    model.use(str(adapters[1]))
    gc.collect()
    assert answer(model, CONFIG, "?") != first
    assert old and [weight for weight in old if weight() is not None] == []
    assert all(weight() is not None for weight in base)
    model.free()


@pytest.mark.filterwarnings(PEFTS_OWN)
def test_an_adapter_that_is_not_there_leaves_the_bare_base(
    model: LocalModel, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    """After an adapter that could not be put on, the base is usable, and so is another adapter."""
    bare = answer(model, CONFIG, "?")
    with pytest.raises((OSError, ValueError)):
        model.use(str(tmp_path / "nowhere"))
    assert answer(model, CONFIG, "?") == bare
    model.use(str(adapters[0]))
    assert answer(model, CONFIG, "?") != bare


@pytest.mark.filterwarnings(PEFTS_OWN)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_free_lets_go_of_all_weights(tiny_model: Path, adapters: tuple[Path, Path], with_adapter: bool) -> None:
    """After free, nothing holds the weights any more; before, they are there."""
    model = LocalModel(str(tiny_model))
    if with_adapter:
        model.use(str(adapters[0]))
    answer(model, CONFIG, "?")
    weights = [weakref.ref(parameter) for parameter in model.weights.parameters()]
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
