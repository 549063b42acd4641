"""The operator's settings, as they are read."""

from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from prefanno import settings
from prefanno.errors import InvalidSetting
from prefanno.settings import Settings


def test_without_variables_every_setting_has_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The home is the current folder, the model is the demo, and the server listens on both loopbacks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/you")
    read = settings.read({"PATH": "/bin", "HOME": "/home/you"})
    assert read == Settings(home=tmp_path, cache=Path("/home/you/.cache/prefanno"))
    assert (read.host, read.port, read.model) == (("127.0.0.1", "::1"), 8000, "demo")
    assert read.database == tmp_path / "data" / "prefanno.db"
    assert (read.outputs, read.runs) == (tmp_path / "outputs", tmp_path / "runs")


def test_every_setting_can_be_set(tmp_path: Path) -> None:
    """Each variable arrives in its field, with its type, and paths are absolute."""
    values = {
        "PREFANNO_HOST": "127.0.0.1",
        "PREFANNO_PORT": "9000",
        "PREFANNO_HOME": str(tmp_path / "home"),
        "PREFANNO_MODEL": "some/hub-id",
        "PREFANNO_DATABASE_URL": "postgresql://you:secret@db.example/prefanno",
        "PREFANNO_SYSTEM_PROMPT": "你是离。",
        "PREFANNO_TRAIN_SCRIPT": "mine.sh",
        "PREFANNO_ALLOWED_HOSTS": "one.example, two.example,",
        "PREFANNO_CORS_ORIGINS": "https://one.example",
        "PREFANNO_PROMPTS_AHEAD": "0",
        "PREFANNO_CACHE": str(tmp_path / "cache"),
    }
    assert {settings.PREFIX + spec.name.upper() for spec in fields(Settings)} == set(values)
    assert settings.read(values) == Settings(
        host=("127.0.0.1",),
        port=9000,
        home=tmp_path / "home",
        model="some/hub-id",
        database_url="postgresql://you:secret@db.example/prefanno",
        system_prompt="你是离。",
        train_script="mine.sh",
        allowed_hosts=("one.example", "two.example"),
        cors_origins=("https://one.example",),
        prompts_ahead=0,
        cache=tmp_path / "cache",
    )


def test_an_empty_variable_is_as_none() -> None:
    """A variable set to nothing, as compose files do, leaves the default."""
    assert settings.read({name: "" for name, _, _ in settings.describe()}) == settings.read({})


@pytest.mark.parametrize("name", ["PREFANNO_MODLE", "PREFANNO_", "PREFANNO_model"])
def test_an_unknown_name_is_refused(name: str) -> None:
    """A misspelt setting is named, together with those there are."""
    with pytest.raises(InvalidSetting, match=f"unknown setting {name}; the settings are: .*PREFANNO_MODEL"):
        settings.read({name: "x"})


@pytest.mark.parametrize("port", ["1", "8000", "65535"])
def test_a_port_is_taken(port: str) -> None:
    """Every port from 1 to 65535 can be set."""
    assert settings.read({"PREFANNO_PORT": port}).port == int(port)


@pytest.mark.parametrize("number", ["-1", "10001", "ten", "9" * 5000])
def test_prompts_ahead_is_a_bounded_number(number: str) -> None:
    """How many prompts are answered ahead of time is a number of a range, whatever is written there."""
    with pytest.raises(InvalidSetting, match="PREFANNO_PROMPTS_AHEAD must be a number from 0 to 10000"):
        settings.read({"PREFANNO_PROMPTS_AHEAD": number})


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "8000.0", " 80", "1e3", "٨٠"])
def test_what_is_no_port_is_refused(port: str) -> None:
    """A port outside the range, or no number at all, is refused with the variable and the range."""
    with pytest.raises(InvalidSetting, match="PREFANNO_PORT must be a number from 1 to 65535"):
        settings.read({"PREFANNO_PORT": port})


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("localhost", ("127.0.0.1", "::1")),
        ("127.0.0.1", ("127.0.0.1",)),
        ("::1", ("::1",)),
        ("::1,127.0.0.1", ("::1", "127.0.0.1")),
    ],
)
def test_loopback_addresses_are_taken(host: str, addresses: tuple[str, ...]) -> None:
    """The server listens on the loopbacks that are named; localhost means both."""
    assert settings.read({"PREFANNO_HOST": host}).host == addresses


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "127.0.0.1,0.0.0.0", "example.com", "127.0.0.2"])  # noqa: S104 - to be refused
def test_any_other_address_is_refused(host: str) -> None:
    """As long as there are no tokens, nobody else can be let in; the error says what to do instead."""
    with pytest.raises(InvalidSetting, match="no tokens yet"):
        settings.read({"PREFANNO_HOST": host})


def test_a_model_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder has one name from wherever it is named, so its adapters are found again; a hub id stays as it is."""
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("models/mine", "~/models/mine", str(tmp_path / "models" / "mine")):
        assert settings.read({"PREFANNO_MODEL": name}).model == str(tmp_path / "models" / "mine")
    for name in ("demo", "org/model", "models/other"):
        assert settings.read({"PREFANNO_MODEL": name}).model == name


def test_the_home_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the user's folder also where no shell has replaced it."""
    monkeypatch.setenv("HOME", "/home/you")
    assert settings.read({"PREFANNO_HOME": "~/li"}).home == Path("/home/you/li")


def test_settings_do_not_change() -> None:
    """Settings are read once, and nobody can change them later."""
    with pytest.raises(FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    """The table that the docs and --help read has a name, a default and a meaning for each setting."""
    described = list(settings.describe())
    assert [name for name, _, _ in described] == [settings.PREFIX + spec.name.upper() for spec in fields(Settings)]
    assert all(meaning for _, _, meaning in described)
    assert ("PREFANNO_PORT", "8000", "port to listen on, 1-65535") in described


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///hush.db",
        "mysql://you:hush@host/name",
        "postgresql+asyncpg://you:hush@host/name",
        "postgresql://you:hush@host",
        "postgresql://you:hush@host/",
        "postgresql://you:hu/sh@host/name",
        "postgresql://you:12/hush@host/name",
        "postgresql://you:12?hush@host/name",
        "postgresql://you:hush@host:port/name",
        "postgresql://you:hu@sh@host/name",
        "postgresql://you:hu%sh@host/name",
        "postgresql://you:hush%@host/name",
        "hush",
    ],
)
def test_a_wrong_database_url_is_refused_unseen(url: str) -> None:
    """Another database, no name, or a password that is not encoded: how it must look, and no word of what it was."""
    with pytest.raises(InvalidSetting, match="must look like postgresql://user:password@host/name") as refused:
        settings.read({"PREFANNO_DATABASE_URL": url})
    assert "hu" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://you:p%40ss@db.example:5433/prefanno", "PostgreSQL db.example:5433/prefanno"),
        ("postgres://db.example/prefanno?sslmode=require", "PostgreSQL db.example/prefanno"),
        ("postgresql:///prefanno?host=/run/postgresql", "PostgreSQL /prefanno"),
    ],
)
def test_a_database_url_is_named_without_its_password(url: str, named: str) -> None:
    """Whatever libpq's own URLs may say is taken; as text there is only where it is."""
    read = settings.read({"PREFANNO_DATABASE_URL": url})
    assert str(read.database) == named and url not in repr(read)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where asyncpg is not installed, the URL is refused with the command that installs it."""
    monkeypatch.setattr(settings, "find_spec", lambda _name: None)
    with pytest.raises(InvalidSetting, match=r"pip install 'prefanno\[postgresql\]'"):
        settings.read({"PREFANNO_DATABASE_URL": "postgresql://db.example/prefanno"})
    assert settings.read({}).database_url == ""
