"""The layers of docs/architecture.md, held by walking every import with `ast`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"prefanno": "prefanno", "exporters": "prefanno.exporters", "migrations": "prefanno.migrations"}

# From top to bottom. A module imports from the lines below its own; of its own line only its own package.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("adapter_commands", "database_commands"),
    ("server", "terminal", "transfers", "shelf", "checks"),
    ("app",),
    ("web",),
    ("keys",),
    ("loop",),
    ("handover",),
    ("comparing", "voting"),
    ("matchup",),
    ("unseen",),
    ("ahead",),
    ("recording", "chat"),
    ("annotation", "arena", "generation", "training"),
    ("migrations",),
    ("prompt_files",),
    ("persona", "prompts"),
    ("snapshot",),
    ("db", "home", "exporters"),
    ("text",),
    ("rows",),
    ("prompting",),
    ("settings",),
    ("errors", "files"),
)
# What a module may import of prefanno, where that is less than its layer allows.
ONLY: dict[str, set[str]] = {
    "prefanno.exporters": {"prefanno.rows", "prefanno.prompting"},
    "prefanno.exporters.parquet_rows": set(),
    "prefanno.training.recipe": {
        "prefanno.prompting",
        "prefanno.rows",
        "prefanno.training.config",
        "prefanno.training.findings",
        "prefanno.training.held_out",
        "prefanno.training.methods",
        "prefanno.files",
    },
    "prefanno.training.keeper": {"prefanno.training.process"},
}
# What a module may import of others, where that is little.
ONLY_OTHERS = {
    "prefanno.exporters.parquet_rows": {"orjson", "pyarrow"},
    "prefanno.training.keeper": {"psutil"},
    "prefanno.training.process": {"psutil"},
}

HEAVY = {"torch", "transformers", "peft", "trl"}
MAY_BE_HEAVY = ("prefanno.generation.", "prefanno.training.recipe.")  # inside functions
ALONE = "prefanno.training.recipe"  # a process of its own, which may import all it likes; nobody imports it

LATE = ("torch", "transformers", "peft", "trl", "alembic", "apispec")  # not needed to answer /health


@dataclass(frozen=True)
class Import:
    """One imported module; `eager` where importing the importer imports it."""

    module: str
    line: int
    eager: bool


def unit(module: str) -> str:
    """The name under which LAYERS knows the module: "prefanno.web.docs" → "web"."""
    return module.split(".")[1] if "." in module else ""


def imports(module: str, source: str) -> Iterator[Import]:
    """Every import of the module, also those inside functions."""
    yield from _imports(module, ast.parse(source), eager=True)


def _imports(module: str, node: ast.AST, *, eager: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, eager) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (Import(name, child.lineno, eager) for name in _modules(_origin(module, child), child))
        else:
            yield from _imports(module, child, eager=eager and not inside and not for_types)


def _origin(module: str, node: ast.ImportFrom) -> str:
    """From where is imported, in full. Only exporters may say it otherwise: tests know them by a second name."""
    if not node.level:
        return str(node.module)
    assert node.level == 1 and module.startswith("prefanno.exporters."), "write imports in full"
    return f"prefanno.exporters.{node.module}" if node.module else "prefanno.exporters"


def _modules(origin: str, node: ast.ImportFrom) -> set[str]:
    """`from prefanno import home` imports prefanno.home; `from prefanno.home import owned` imports that too."""
    inner = {f"{origin}.{alias.name}" for alias in node.names}
    return {name if name in MODULES else origin for name in inner}


def violations(module: str, source: str) -> list[str]:
    """What is wrong with the module's imports, one sentence each."""
    return [
        f"{module}, line {found.line}, imports {found.module}: {fault}"
        for found in imports(module, source)
        for fault in _faults(module, found)
    ]


def _faults(module: str, found: Import) -> Iterator[str]:
    if found.module.split(".")[0] == "prefanno":
        if found.module.startswith(ALONE) and not module.startswith(ALONE):
            yield f"{ALONE} runs alone"
        if unit(found.module) and unit(found.module) != unit(module) and _layer(found.module) <= _layer(module):
            yield "imports point down, and siblings do not import each other"
        for narrow, allowed in ONLY.items():
            own = f"{found.module}.".startswith(f"{narrow}.")
            if f"{module}.".startswith(f"{narrow}.") and not own and found.module not in allowed and unit(found.module):
                yield f"{narrow} may import only {sorted(allowed)}"
    else:
        package = found.module.split(".")[0]
        eager = found.eager and not module.startswith(f"{ALONE}.")
        if package in HEAVY and (eager or not module.startswith(MAY_BE_HEAVY)):
            yield "only training/recipe/, and generation/ inside functions"
        if module in ONLY_OTHERS and package not in ONLY_OTHERS[module] | sys.stdlib_module_names:
            yield f"of others only {sorted(ONLY_OTHERS[module])}"


def _layer(module: str) -> int:
    return next(number for number, units in enumerate(LAYERS) if unit(module) in units)


def _sources() -> dict[str, Path]:
    found = {}
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join([package, *file.relative_to(ROOT / folder).with_suffix("").parts])
            found[name.removesuffix(".__init__")] = file
    return found


MODULES = _sources()


def test_every_module_has_a_layer() -> None:
    """No module is outside the table, and the table names none that is not there."""
    found = {unit(module) for module in MODULES} - {""}
    assert found == {name for layer in LAYERS for name in layer}
    assert len(MODULES) > 40


@pytest.mark.parametrize("module", [module for module in MODULES if unit(module)])
def test_imports_point_down(module: str) -> None:
    """Each module imports only what its layer, and its own stricter rule, allows."""
    assert violations(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("prefanno.db.engine", "from prefanno.annotation import dataset"),
        ("prefanno.db.engine", "from prefanno.annotation.dataset import add"),
        ("prefanno.db.engine", "import prefanno.web.routes"),
        ("prefanno.errors", "from prefanno import settings"),
        ("prefanno.loop", "def later():\n    from prefanno.web import answers"),
        ("prefanno.generation.engine", "from prefanno.training.config import LORA"),
        ("prefanno.training.supervisor", "if TYPE_CHECKING:\n    from prefanno.annotation.export import export"),
        ("prefanno.rows", "from prefanno.text import fault"),
        ("prefanno.files", "from prefanno.errors import NotFound"),
        ("prefanno.annotation.imports", "from prefanno.training.config import stages"),
        ("prefanno.snapshot", "from prefanno.training.config import stages"),
        ("prefanno.exporters.trl_parquet", "from prefanno.text import fault"),
        ("prefanno.exporters.parquet_rows", "from .containers import LONGEST"),
        ("prefanno.exporters.parquet_rows", "from prefanno.rows import Row"),
        ("prefanno.exporters.parquet_rows", "import datasets"),
        ("prefanno.exporters.sharegpt", "from prefanno.db.models import Annotation"),
        ("prefanno.exporters.sharegpt", "from prefanno.errors import InvalidInput"),
        ("prefanno.training.recipe.preflight", "from prefanno.db.engine import Database"),
        ("prefanno.training.recipe.preflight", "from prefanno.web import schemas"),
        ("prefanno.training.recipe.preflight", "from prefanno.training.supervisor import Supervisor"),
        ("prefanno.training.supervisor", "from prefanno.training.recipe.preflight import check"),
        ("prefanno.handover", "def late():\n    from prefanno.training import recipe"),
        ("prefanno.training.metrics", "import torch"),
        ("prefanno.generation.model", "try:\n    from torch.nn import functional\nexcept ImportError:\n    pass"),
        ("prefanno.loop", "def late():\n    import transformers.utils"),
        ("prefanno.training.keeper", "from prefanno.settings import Settings"),
        ("prefanno.training.keeper", "import aiohttp"),
    ],
)
def test_an_offending_import_is_caught(module: str, source: str) -> None:
    """Control: the walk sees an import that breaks a rule, wherever it stands in the module."""
    assert violations(module, source) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("prefanno.web.dataset", "from prefanno.web import answers\nfrom prefanno.loop import Loop"),
        ("prefanno.generation.model", "def late():\n    import torch"),
        ("prefanno.generation.model", "if TYPE_CHECKING:\n    import torch"),
        ("prefanno.training.recipe.base", "import torch\nfrom prefanno.training.config import RunConfig"),
        ("prefanno.training.keeper", "import os\nimport psutil\nfrom prefanno.training.process import identity"),
        ("prefanno.cli", "from prefanno import __version__, home, persona"),
        ("prefanno.exporters.trl_parquet", "from . import parquet_rows\nfrom .containers import Entries"),
        ("prefanno.exporters.trl_parquet", "from prefanno.rows import Fault"),
    ],
)
def test_an_allowed_import_is_not_caught(module: str, source: str) -> None:
    """Control: the walk leaves alone what the rules allow."""
    assert violations(module, source) == []


def _loaded_by(statement: str) -> set[str]:
    """Which of LATE a fresh interpreter has loaded after the statement."""
    script = f"import sys\n{statement}\nprint(*(set({LATE}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_server_answers_before_torch_exists() -> None:
    """Importing the application, or the command line, loads neither torch nor what only some requests need."""
    assert _loaded_by("import prefanno.app, prefanno.cli, prefanno.server") == set()
    assert _loaded_by("import prefanno.app, alembic") == {"alembic"}  # control
