"""Which adapter a load takes: promotions, roll-backs, notes, and the file that holds them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prefanno.errors import Conflict, InvalidInput, NotFound, RegistryDamaged
from prefanno.training import adapters, registry
from prefanno.training.registry import BASE
from tests.training.test_adapters import _publish, home

__all__ = ["home"]  # a fixture
LI = ("li", "base")


@pytest.fixture
def outputs(home: Path) -> Path:
    """With three adapters of li and one of mia."""
    for run, name in enumerate(["li-sft-1", "li-simpo-2", "li-dpo-3", "mia-sft-1"], 1):
        _publish(home, run, name)
    return home / "outputs"


def _chosen(outputs: Path) -> str | None:
    found = registry.chosen(outputs, *LI)
    return found.name if found else None


def test_without_a_promotion_the_newest_is_chosen(outputs: Path) -> None:
    """A character's newest adapter, and none of a character or base model without any."""
    assert _chosen(outputs) == "li-dpo-3"
    assert registry.chosen(outputs, "li", "another") is None


def test_the_list_says_of_each_what_is_said_of_it(outputs: Path) -> None:
    """The character's adapters, the newest first: which a load takes, which is promoted on its base, and notes."""
    _publish(outputs.parent, 5, "li-kto-10", "another")
    registry.promote(outputs, *LI, "li-sft-1")
    registry.promote(outputs, "li", "another", "li-kto-10")
    registry.note(outputs, "li-dpo-3", "dry")
    assert [(one.adapter.name, one.note, one.promoted, one.chosen) for one in registry.listed(outputs, *LI)] == [
        ("li-kto-10", "", True, False),
        ("li-dpo-3", "dry", False, False),
        ("li-simpo-2", "", False, False),
        ("li-sft-1", "", True, True),
    ]
    registry.promote(outputs, *LI, BASE)
    assert not any(
        one.chosen or (one.adapter.name == "li-sft-1" and one.promoted) for one in registry.listed(outputs, *LI)
    )


def test_promotions_are_a_stack(outputs: Path) -> None:
    """The one promoted last is chosen; each roll-back gives the one before, at last the newest, then it is refused."""
    for name in ("li-sft-1", BASE, "li-simpo-2", "li-simpo-2"):
        registry.promote(outputs, *LI, name)
    assert _chosen(outputs) == "li-simpo-2"
    registry.roll_back(outputs, *LI)
    assert _chosen(outputs) is None
    registry.roll_back(outputs, *LI)
    assert _chosen(outputs) == "li-sft-1"
    registry.roll_back(outputs, *LI)
    assert _chosen(outputs) == "li-dpo-3"
    with pytest.raises(Conflict, match="no adapter of li is promoted"):
        registry.roll_back(outputs, *LI)


def test_each_character_and_base_model_has_its_own(outputs: Path) -> None:
    """A promotion moves nobody else's, and is not taken back by another's roll-back."""
    registry.promote(outputs, *LI, "li-sft-1")
    registry.promote(outputs, "mia", "base", "mia-sft-1")
    registry.promote(outputs, "li", "another", BASE)
    registry.roll_back(outputs, "mia", "base")
    registry.roll_back(outputs, "li", "another")
    assert _chosen(outputs) == "li-sft-1"


@pytest.mark.parametrize("name", ["li-simpo-9", "mia-sft-1", "", "../li-sft-1"])
def test_what_is_no_adapter_of_the_character_is_refused(outputs: Path, name: str) -> None:
    """A name that is not one of the character's adapters is refused, with the field."""
    with pytest.raises(InvalidInput) as refused:
        registry.promote(outputs, *LI, name)
    assert set(refused.value.fields) == {"adapter"}
    assert _chosen(outputs) == "li-dpo-3"


def test_a_promoted_adapter_that_is_gone_gives_way_to_the_one_before(outputs: Path) -> None:
    """Where somebody moved the promoted folder away, the promotion before it holds."""
    registry.promote(outputs, *LI, "li-sft-1")
    registry.promote(outputs, *LI, "li-simpo-2")
    (outputs / "li-simpo-2").rename(outputs / "away")
    assert _chosen(outputs) == "li-sft-1"


def test_a_deleted_adapter_leaves_nothing(outputs: Path) -> None:
    """Its folder, its note and its earlier promotions go; one that is promoted, or not there, is refused."""
    registry.promote(outputs, *LI, "li-sft-1")
    registry.note(outputs, "li-sft-1", "old")
    with pytest.raises(Conflict, match="li-sft-1 is promoted"):
        registry.take_away(outputs, "li-sft-1")
    registry.promote(outputs, *LI, "li-simpo-2")
    gone = registry.take_away(outputs, "li-sft-1")
    assert (gone / adapters.CARD).is_file()
    with pytest.raises(NotFound):
        registry.take_away(outputs, "li-sft-1")
    registry.roll_back(outputs, *LI)
    assert _chosen(outputs) == "li-dpo-3"
    assert registry.read(outputs).notes == {}
    assert [one.name for one in adapters.every(outputs) if one.character == "li" and one.method == "sft"] == []


def test_a_note_stays_until_the_next(outputs: Path) -> None:
    """A note is kept with its adapter; an empty one is none; an adapter that is not there has none."""
    registry.note(outputs, "li-sft-1", "风趣")
    registry.note(outputs, "li-simpo-2", "dull")
    registry.note(outputs, "li-simpo-2", "")
    assert registry.read(outputs).notes == {"li-sft-1": "风趣"}
    with pytest.raises(NotFound):
        registry.note(outputs, "li-simpo-9", "?")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"promotions": [{"adapter": "x"}], "notes": {}}', '{"notes": 1}', "\xff", "[" * 100_000),
        '{"promotions": [], "notes": {"li-sft-1": "\\ud800"}}',
    ],
)
def test_a_file_that_is_none_is_refused_and_left(outputs: Path, text: str) -> None:
    """A file that somebody broke is named and not written over: what it said may be mended."""
    (outputs / registry.FILE).write_text(text, "latin-1")
    acts: list[Callable[[], object]] = [
        lambda: registry.chosen(outputs, *LI),
        lambda: registry.promote(outputs, *LI, "li-sft-1"),
        lambda: registry.note(outputs, "li-sft-1", "x"),
    ]
    for act in acts:
        with pytest.raises(RegistryDamaged, match=r"adapters\.json"):
            act()
    assert (outputs / registry.FILE).read_text("latin-1") == text


def test_promotions_that_can_be_taken_back_have_an_end(outputs: Path) -> None:
    """Of many promotions the last hundred are kept; what is in force is not changed by that."""
    for number in range(registry.MOST + 20):
        registry.promote(outputs, *LI, ("li-sft-1", "li-simpo-2")[number % 2])
    assert len(registry.read(outputs).promotions) == registry.MOST
    assert _chosen(outputs) == "li-simpo-2"
