"""The documentation has everything there is: routes, fields, settings, errors, commands, exporters, defaults, links."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from types import ModuleType

import click
import pytest
from aiohttp.web import RouteDef
from marshmallow import Schema

from prefanno import errors, settings
from prefanno.cli import cli
from prefanno.errors import PrefannoError
from prefanno.rows import Fault, formats
from prefanno.training.findings import FINDINGS
from prefanno.training.methods import METHODS
from prefanno.web.endpoint import SPEC, Spec
from prefanno.web.middlewares import STATUSES
from prefanno.web.routes import ROUTES
from prefanno.web.training_answers import MESSAGES
from tests.annotation.test_dataset import MULTI, SINGLE

ROWS = [SINGLE, MULTI]
ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
PAGES = (*READMES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md")))
LINKED = re.compile(r"\[([^\]]*)\]\([^)]*\)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^(#+) ", re.MULTILINE)
CLAUSE = re.compile(r"[^：，。；（]+")  # what a client may compare: a detail up to its first punctuation mark


def missing(wanted: Iterable[str], found: Collection[str]) -> list[str]:
    """What is wanted and not found."""
    return [name for name in wanted if name not in found]


def page(name: str) -> str:
    """The text of a page in docs/."""
    return (DOCS / name).read_text(encoding="utf-8")


def sections(name: str) -> dict[str, str]:
    """The page's second-level sections: title → text."""
    pieces = re.split(r"^## (.+)\n", page(name), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the text's tables: first cell, without backticks → the other cells."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first.strip("`"): [cell.strip() for cell in others] for first, *others in lines}


def canonical(path: str) -> str:
    """The path as clients read it: "/x/{id:…}" → "/x/{id}"."""
    return re.sub(r":[^}]+", "", path)


def titles(routes: Iterable[RouteDef]) -> list[str]:
    """The section that each route should have."""
    return [f"{route.method} {canonical(route.path)}" for route in routes]


def requests() -> Iterator[tuple[str, type[Schema]]]:
    """Section and schema of each route that takes a body or a query."""
    for route in ROUTES:
        spec: Spec | None = getattr(route.handler, SPEC, None)
        if spec and (schema := spec.body or spec.query):
            yield f"{route.method} {canonical(route.path)}", schema


def commands(group: click.Group, prefix: str = "prefanno") -> Iterator[tuple[str, click.Command]]:
    """Every command under the group, by its full name."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def kinds(error: type[PrefannoError]) -> Iterator[type[PrefannoError]]:
    """Every class of errors.py below this one."""
    for kind in error.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
            yield from kinds(kind)


def error_row(error: type[PrefannoError]) -> tuple[str, str, str]:
    """Name, status and beginning of the Chinese detail, as the table should have them."""
    status = next((str(status) for kind, status in STATUSES.items() if issubclass(error, kind)), "–")
    detail = error({}).detail if error is errors.InvalidInput else error.detail
    beginning = CLAUSE.match(detail)
    assert beginning, error
    return error.__name__, status, beginning[0]


def broken_links(path: Path, text: str) -> list[str]:
    """The relative links of the page that lead to no file."""
    targets = [match["target"].partition("#")[0] for match in LINK.finditer(FENCE.sub("", text))]
    return [target for target in targets if target and "://" not in target and not (path.parent / target).exists()]


def structure(text: str) -> tuple[list[str], list[str]]:
    """The levels of the page's headings, and its code blocks."""
    return HEADING.findall(FENCE.sub("", text)), FENCE.findall(text)


def test_every_route_has_a_section() -> None:
    """docs/api.md has a section for each route, titled by method and path."""
    assert missing(titles(ROUTES), sections("api.md")) == []


def test_a_route_without_a_section_is_found() -> None:
    """The control: a route that nobody described is missing from docs/api.md."""

    async def handler(_request: object) -> None: ...

    made_up = RouteDef("POST", "/api/made/up", handler, {})  # type: ignore[arg-type]
    assert missing(titles([*ROUTES, made_up]), sections("api.md")) == ["POST /api/made/up"]


def test_every_section_of_a_route_has_its_route() -> None:
    """docs/api.md describes no route that is gone."""
    described = [title for title in sections("api.md") if title.startswith(("GET ", "POST "))]
    assert missing(described, titles(ROUTES)) == []


def test_every_field_of_a_request_is_described() -> None:
    """Each route's section has a row for each field, with its default and its range."""
    for title, schema in requests():
        described = rows(sections("api.md")[title])
        fields = schema().fields
        assert missing(fields, described) == [], title
        for name, field in fields.items():
            default, span = described[name][1].strip('`"'), described[name][2]
            if isinstance(field.load_default, bool | int | float | str):
                assert default == str(field.load_default).removesuffix(".0").replace("True", "true").replace(
                    "False", "false"
                ), (title, name)
            assert field.required == (default == "required"), (title, name)
            for bound in _bounds(field.validators):
                assert bound in span.replace("`", ""), (title, name, bound)


def _bounds(validators: Iterable[Callable[..., object]]) -> list[str]:
    """What the validators allow, as text: both ends of a range, or all choices."""
    found: list[object] = []
    for validator in validators:
        found += [bound for name in ("min", "max") if (bound := getattr(validator, name, None)) is not None]
        found += getattr(validator, "choices", [])
    return [str(bound) for bound in found]


def test_every_setting_is_described() -> None:
    """docs/settings.md has a row for each setting, with its default."""
    described = rows(page("settings.md"))
    for name, default, _ in settings.describe():
        assert missing([name], described) == []
        assert not default or described[name][0] == f"`{default}`", name


def test_every_error_is_described() -> None:
    """docs/errors.md has a row for each class of errors.py, with its status and the beginning of its detail."""
    wanted = [error_row(kind) for kind in kinds(PrefannoError)]
    assert len(wanted) > len(STATUSES)
    found = {(name, *cells[:2]) for name, cells in rows(page("errors.md")).items()}
    assert [row for row in wanted if row not in found] == []


def test_every_command_is_described() -> None:
    """docs/cli.md has a section for each command, with its options."""
    described = sections("cli.md")
    assert missing((name for name, _ in commands(cli)), described) == []
    for name, command in commands(cli):
        options = [option for parameter in command.params for option in parameter.opts]
        named = rows(described[name])
        assert missing((option if option.startswith("-") else option.upper() for option in options), named) == [], name


def test_every_exporter_is_described() -> None:
    """docs/exporters.md has a row and a section for each exporter that is installed, with what it can."""
    described = {LINKED.sub(r"\1", cell).strip("`"): others for cell, others in rows(page("exporters.md")).items()}
    said = {name: [cell == "yes" for cell in described[name][:2]] for name in formats()}
    assert said == {name: [can["export"], can["import"]] for name, can in formats().items()}
    assert missing(formats(), " ".join(sections("exporters.md"))) == []


def test_the_exporter_in_the_documentation_is_one(tmp_path: Path) -> None:
    """The whole exporter of docs/exporters.md writes rows and reads them back, and names a bad one."""
    (source,) = re.findall(
        r"^`prefanno_jsonl\.py`:\n\n```python\n(.*?)^```$", page("exporters.md"), re.DOTALL | re.MULTILINE
    )
    module = ModuleType("prefanno_jsonl")
    exec(source, vars(module))  # noqa: S102 - what the reader is told to do
    with module.writing(tmp_path, "li") as writing:
        writing.write(ROWS)
        writing.write(ROWS)
    assert (writing.counts, writing.losses) == ({"li.jsonl": 2 * len(ROWS)}, {})
    file = tmp_path / "li.jsonl"
    file.write_text(file.read_text(encoding="utf-8") + "{}\n", encoding="utf-8")
    *found, (line, fault) = module.reading(file)
    assert found == list(enumerate([*ROWS, *ROWS], 1))
    assert line == len(found) + 1 and isinstance(fault, Fault)


@pytest.mark.parametrize("method", METHODS)
def test_every_hyperparameter_is_described(method: str) -> None:
    """docs/training.md has, for each method, each hyperparameter with its default, its bounds and its source."""
    described = rows(sections("training.md")[method])
    assert described.keys() >= METHODS[method].hyperparameters.keys()
    for name, one in METHODS[method].hyperparameters.items():
        default, bounds, source = described[name]
        assert default.strip("`") == (one.default if one.choices else f"{one.default:g}"), name
        assert bounds == (", ".join(f"`{each}`" for each in one.choices) or f"{one.low:g}–{one.high:g}"), name
        assert re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", source) == one.source, name


def test_every_finding_is_described() -> None:
    """docs/training.md has each finding of preflight, with what is done about it; the API has a text for each."""
    described = rows(page("training.md"))
    assert {code: described[code][0] for code in FINDINGS} == {code: action for code, (action, _) in FINDINGS.items()}
    assert MESSAGES.keys() == FINDINGS.keys()


def test_every_link_leads_somewhere() -> None:
    """Each relative link of a page leads to a file."""
    broken = {path.name: broken_links(path, path.read_text(encoding="utf-8")) for path in PAGES}
    assert {name: links for name, links in broken.items() if links} == {}


def test_a_link_to_nowhere_is_found() -> None:
    """The control: a link to a file that is not there is found, one to a site or in a code block is left alone."""
    text = "[a](nowhere.md) [b](https://example.org) [c](README.md#top)\n```\n[d](code.md)\n```\n"
    assert broken_links(ROOT / "README.md", text) == ["nowhere.md"]


def test_both_readmes_say_the_same() -> None:
    """The READMEs have the same headings, level by level, and the same code blocks."""
    english, chinese = (structure(path.read_text(encoding="utf-8")) for path in READMES)
    assert english[0] == chinese[0]
    assert [pair for pair in zip_longest(english[1], chinese[1]) if pair[0] != pair[1]] == []
