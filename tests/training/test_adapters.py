"""The names of adapters, and which of them can be loaded."""

import json
from pathlib import Path

import pytest

from prefanno.training import adapters
from prefanno.training.config import LORA, RunConfig


def _config(name: str, base: str = "base") -> RunConfig:
    return RunConfig("li", base, base, name, stages=[{"method": "simpo"}], lora=LORA)


def _made(run: Path) -> Path:
    """A run's folder, with an adapter as the recipe leaves it."""
    (run / "adapter").mkdir(parents=True)
    for name in adapters.WEIGHTS:
        (run / "adapter" / name).write_text("{}")
    return run


def _publish(home: Path, number: int, name: str, base: str = "base") -> Path:
    return adapters.publish(number, _made(home / "runs" / str(number)), home / "outputs", _config(name, base))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with outputs/."""
    (tmp_path / "outputs").mkdir()
    return tmp_path


def test_the_first_adapter_is_number_one(home: Path) -> None:
    """In an empty folder counting starts at 1."""
    assert adapters.next_name(home / "outputs", "li", "simpo", []) == "li-simpo-1"


def test_numbers_count_over_methods_and_deleted_ones(home: Path) -> None:
    """A new adapter has a higher number than any before it: of any method, deleted, or known only to the database."""
    _publish(home, 1, "li-sft-1")
    assert adapters.next_name(home / "outputs", "li", "simpo", ["li-sft-1"]) == "li-simpo-2"
    assert adapters.next_name(home / "outputs", "li", "simpo", ["li-sft-1", "li-simpo-11"]) == "li-simpo-12"


@pytest.mark.parametrize(
    "name", ["mia-simpo-7", "li-simpo", "li-simpo-07", "li-simpo-7-old", "notes", "li-simpo-7.bak"]
)
def test_other_names_do_not_count(home: Path, name: str) -> None:
    """Other characters' adapters, and whatever else lies there, do not move the number."""
    (home / "outputs" / name).mkdir()
    assert adapters.next_name(home / "outputs", "li", "simpo", [name]) == "li-simpo-1"


def test_the_newest_is_the_one_with_the_highest_number(home: Path) -> None:
    """Ten comes after nine, whatever the method and the order of their making."""
    for run, name in enumerate(["li-sft-2", "li-simpo-10", "li-simpo-9", "mia-simpo-99"], 1):
        _publish(home, run, name)
    found = adapters.newest(home / "outputs", "li", "base")
    assert found is not None
    assert (found.name, found.number, found.run, found.base_model) == ("li-simpo-10", 10, 2, "base")
    assert found.folder == home / "outputs" / "li-simpo-10"


def test_an_adapter_of_another_base_model_is_not_chosen(home: Path) -> None:
    """Only adapters that were trained on the base model in use fit it."""
    _publish(home, 1, "li-simpo-1", base="this")
    _publish(home, 2, "li-simpo-2", base="that")
    for base, name in (("this", "li-simpo-1"), ("that", "li-simpo-2")):
        found = adapters.newest(home / "outputs", "li", base)
        assert found is not None and found.name == name
    assert adapters.newest(home / "outputs", "li", "another") is None


@pytest.mark.parametrize("missing", [*adapters.WEIGHTS, adapters.CARD])
def test_a_half_written_folder_is_never_found(home: Path, missing: str) -> None:
    """A folder without weights, configuration or card is no adapter; the complete one before it is chosen."""
    _publish(home, 1, "li-simpo-1")
    half = _publish(home, 2, "li-simpo-2")
    found = adapters.newest(home / "outputs", "li", "base")
    assert found is not None and found.name == "li-simpo-2"  # control: it counts as long as it is whole
    (half / missing).unlink()
    found = adapters.newest(home / "outputs", "li", "base")
    assert found is not None and found.name == "li-simpo-1"


@pytest.mark.parametrize("card", ["", "{", "[]", "{}", '{"base_model": "base"}'])
def test_a_folder_with_a_strange_card_is_not_found(home: Path, card: str) -> None:
    """A card that prefanno did not write hides its folder, and no more than that."""
    _publish(home, 1, "li-simpo-1")
    (_publish(home, 2, "li-simpo-2") / adapters.CARD).write_text(card)
    found = adapters.newest(home / "outputs", "li", "base")
    assert found is not None and found.name == "li-simpo-1"


def test_a_published_adapter_says_where_it_comes_from(home: Path) -> None:
    """The folder moves, whole, to its name, with a card that names run, base model, character and stages."""
    folder = _publish(home, 3, "li-simpo-1")
    assert folder == home / "outputs" / "li-simpo-1"
    assert not (home / "runs" / "3" / "adapter").exists()
    card = json.loads((folder / adapters.CARD).read_text())
    assert (card["run"], card["base_model"], card["character"]) == (3, "base", "li")
    assert card["stages"] == [{"method": "simpo"}]


def test_publishing_is_one_rename(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the one rename, nothing of the adapter is in outputs/; if it fails, nothing is left there."""

    def fails(_self: Path, target: Path) -> Path:
        assert (_self / adapters.CARD).is_file()
        assert list(target.parent.iterdir()) == []
        raise OSError("no rename today")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="no rename today"):
        _publish(home, 1, "li-simpo-1")
    assert list((home / "outputs").iterdir()) == []


@pytest.mark.parametrize("missing", adapters.WEIGHTS)
def test_missing_weights_are_refused(home: Path, missing: str) -> None:
    """What a run did not write cannot be published, and the error names it."""
    run = _made(home / "runs" / "1")
    (run / "adapter" / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"train.sh ended well, but wrote no adapter/{missing}"):
        adapters.publish(1, run, home / "outputs", _config("li-simpo-1"))
    assert list((home / "outputs").iterdir()) == []


def test_publishing_again_changes_nothing(home: Path) -> None:
    """A run that was published, and is settled a second time, keeps its adapter as it is."""
    first = _publish(home, 1, "li-simpo-1")
    card = (first / adapters.CARD).read_text()
    assert adapters.publish(1, home / "runs" / "1", home / "outputs", _config("li-simpo-1")) == first
    assert (first / adapters.CARD).read_text() == card


def test_an_adapter_is_never_overwritten(home: Path) -> None:
    """A second run cannot take the name of the first one's adapter."""
    first = _publish(home, 1, "li-simpo-1")
    with pytest.raises(OSError, match="not empty"):
        _publish(home, 2, "li-simpo-1")
    assert json.loads((first / adapters.CARD).read_text())["run"] == 1
