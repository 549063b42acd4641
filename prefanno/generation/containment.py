"""What leaves the engine's thread when something fails there: an error of ours, as text, and no tensor with it."""

import logging
import traceback
from collections.abc import Callable
from typing import TypeVar

from prefanno.errors import EngineBroken, EngineFailed, OutOfMemory, PrefannoError

T = TypeVar("T")

log = logging.getLogger(__name__)


def contained(work: Callable[[], T]) -> T:
    """Run it; an exception leaves as text, because its traceback would hold every frame's tensors (pytorch #27600)."""
    try:
        return work()
    except PrefannoError as error:
        raise error.with_traceback(None) from None
    except Exception as error:  # noqa: BLE001 - whatever a model or its libraries raise
        log.error("the engine failed:\n%s", traceback.format_exc())  # noqa: TRY400 - as text, see above
        failure = _failure(error)
    raise failure


def _failure(error: Exception) -> EngineFailed:
    import torch

    reason = f"{type(error).__name__}: {error}"
    # The CPU's allocator has no class of its own: RuntimeError "[enforce fail at alloc_cpu.cpp] … not enough memory".
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in reason:
        return OutOfMemory()
    # After a device-side assert every later call fails, too (text-generation-inference #965).
    if isinstance(error, torch.AcceleratorError) or "CUDA error" in reason:
        return EngineBroken(reason.splitlines()[0])  # CUDA adds advice for its own developers
    return EngineFailed(f"the engine failed: {reason}", f"推理引擎出错：{reason}")
