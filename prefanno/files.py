"""Files that appear whole or not at all, also when the process is killed while it writes them. Blocks."""

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

STAGE = ".export-"  # begins the name of a folder in which files are being written


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` for files that `place` then moves out; gone after the block, whatever happens."""
    stage = folder / f"{STAGE}{secrets.token_hex(4)}"
    with contextlib.ExitStack() as lock:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder):  # nobody shall take the new folder for one that was left
                _clear(folder)
                stage.mkdir()
                lock.enter_context(locked(stage))  # that says that somebody still writes here
        except OSError as error:  # it names the stage, of which nobody knows
            raise OSError(error.errno, f"cannot write to {folder}: {error.strerror}") from error
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)


@contextlib.asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Path]:
    """As `staging`, for a coroutine: another process may hold the lock for long, and a large stage takes long to go."""
    stage = staging(folder)
    path = await asyncio.to_thread(stage.__enter__)
    try:
        yield path
    finally:
        await asyncio.to_thread(stage.__exit__, None, None, None)


def place(stage: Path, folder: Path, last: str) -> None:
    """Move all files of the stage into the folder, `last` after the others; their bytes are on the disk before."""
    names = sorted(path.name for path in stage.iterdir() if path.name != last)
    for name in [*names, last]:
        if (folder / name).is_dir():  # else those before it would be new, and the others old
            raise OSError(errno.EISDIR, f"cannot write to {folder}: {name} is a folder")
        sync(stage / name)
    for name in [*names, last]:
        (stage / name).replace(folder / name)
    sync(folder)


def write(path: Path, content: bytes) -> None:
    """A new file with this content."""
    with path.open("xb") as file:
        file.write(content)


def replace(path: Path, content: bytes) -> None:
    """Give the file this content, on the disk, in place of what it had."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """One process at a time in this folder. Raises BlockingIOError where another has it and `wait` is false."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Put a file, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    """Remove what killed exports left."""
    for left in folder.glob(f"{STAGE}????????"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError, NotADirectoryError), locked(left, wait=False):
            shutil.rmtree(left, ignore_errors=True)
