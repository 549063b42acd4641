"""How far a load is. The engine's thread writes it, the event loop reads it."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

T = TypeVar("T")
Phase = Literal["waiting", "converting", "reading weights", "adapter"]
PHASES: tuple[Phase, ...] = get_args(Phase)

BAR = "Loading weights"  # transformers' name for the bar that it would draw


class Progress:
    """The phase, how much of it is done where that is known, and when all began.

    It begins with waiting: the step that is under way ends, and memory is given back. The demo model is converted once.
    """

    def __init__(self) -> None:
        self.phase: Phase = "waiting"
        self.fraction: float | None = None
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since all began."""
        return round(time.monotonic() - self._started, 1)

    def begin(self, phase: Phase) -> None:
        """The next phase; how long it takes is not known yet."""
        self.phase, self.fraction = phase, None

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Learn the fraction from transformers, which counts the weights that it reads."""
        from transformers.utils import logging

        before = logging.set_tqdm_hook(self._bar)
        try:
            yield
        finally:
            logging.set_tqdm_hook(before)

    def _bar(self, bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return self._count(args[0]) if options.get("desc") == BAR else bar(*args, **options)

    def _count(self, weights: Collection[T]) -> Iterator[T]:
        for done, weight in enumerate(weights):
            self.fraction = round(done / len(weights), 3)
            yield weight
        self.fraction = 1.0
