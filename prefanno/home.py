"""The folder that holds everything a person made; one process at a time writes to it."""

import contextlib
import errno
from collections.abc import Iterator

from filelock import FileLock, Timeout

from prefanno.errors import HomeInUse, InvalidSetting, PrefannoError, StorageFull
from prefanno.settings import Settings


@contextlib.contextmanager
def owned(settings: Settings) -> Iterator[None]:
    """Own the home for the block, creating its folders. Raises HomeInUse, StorageFull or InvalidSetting at once."""
    lock = FileLock(settings.data / ".lock", timeout=0)
    try:
        for folder in (settings.data, settings.outputs, settings.runs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what a person writes is nobody else's
        lock.acquire()
    except Timeout:
        raise HomeInUse(
            f"another prefanno uses {settings.home}; stop it, or set PREFANNO_HOME to another folder"
        ) from None
    except OSError as error:
        raise _explain(settings, error) from error
    try:
        yield
    finally:
        lock.release()


def _explain(settings: Settings, error: OSError) -> PrefannoError:
    if error.errno == errno.ENOSPC:
        return StorageFull()
    return InvalidSetting(f"cannot write to {settings.home}: {error.strerror}; set PREFANNO_HOME to a folder of yours")
