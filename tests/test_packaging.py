"""setup.cfg, constraints.txt and the wheel, against what is in the repository."""

import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
MAPPED = ("exporters", "migrations")


@pytest.fixture(scope="module")
def config() -> ConfigParser:
    """setup.cfg."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the sources, with the setuptools that is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("prefanno", *MAPPED):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "train.sh"):
        shutil.copy(ROOT / name, folder)
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(folder / "dist"), str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return zipfile.ZipFile(next((folder / "dist").glob("*.whl")))


def requirements(config: ConfigParser) -> list[Requirement]:
    """What prefanno and its tests require."""
    lines = config["options"]["install_requires"] + config["options.extras_require"]["test"]
    return [Requirement(line) for line in lines.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_every_package_folder_is_listed(config: ConfigParser) -> None:
    """A new folder of modules cannot be forgotten in setup.cfg."""
    folders = [
        path.parent.relative_to(ROOT) for top in ("prefanno", *MAPPED) for path in ROOT.glob(f"{top}/**/__init__.py")
    ]
    names = [".".join(folder.parts) for folder in folders]
    found = {f"prefanno.{name}" if name.startswith(MAPPED) else name for name in names}
    assert found == set(config["options"]["packages"].split())


def test_every_requirement_is_pinned_within_its_bounds(config: ConfigParser) -> None:
    """constraints.txt names one version of each requirement, and it is one that setup.cfg allows."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for requirement in requirements(config):
        pinned = pins.get(canonicalize_name(requirement.name))
        assert pinned is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned), f"{requirement} against {pinned}"


def test_exporters_are_found_by_entry_point() -> None:
    """The installed package offers its formats in the group that other packages can add to."""
    (found,) = entry_points(group="prefanno.exporters", name="sharegpt")
    assert isinstance(found.load(), ModuleType)


@pytest.mark.parametrize(
    "name",
    [
        "prefanno/py.typed",
        "prefanno/train.sh",
        "prefanno/exporters/sharegpt.py",
        "prefanno/migrations/env.py",
        "prefanno/migrations/script.py.mako",
        "prefanno/migrations/versions/__init__.py",
    ],
)
def test_the_wheel_holds_what_is_read_at_run_time(wheel: zipfile.ZipFile, name: str) -> None:
    """Each of these is in the wheel, and not empty where it has a text."""
    source = name if (ROOT / name).exists() else name.removeprefix("prefanno/")
    assert wheel.read(name) == (ROOT / source).read_bytes()


def test_the_wheel_puts_nothing_beside_the_package(wheel: zipfile.ZipFile) -> None:
    """Exporters and migrations lie inside prefanno, not side by side with it."""
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"prefanno"}
