"""One request on its way through the engine: its rows, their redraws, and what its client is told.

The event loop makes a job, reads its events and cancels it; the engine's thread writes its rows and tells of them.
"""

import asyncio
import difflib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from prefanno.errors import PrefannoError
from prefanno.generation.config import Event, Finished, Reply, Request
from prefanno.generation.sampling import seed_of
from prefanno.generation.writing import Row, Vocabulary

DRAWS = 3
NEAR_DUPLICATE = 0.9  # share of equal text above which a person would see the same reply twice
FALLBACK = "……"  # what a character "says" when the model wrote nothing but tags, three times over


class Job:
    """A request, and its events as they come."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.cancelled = self.is_over = False
        self.at_once = request.config.num_responses  # rows in one batch
        self.is_alone = False  # in its batch
        self._drawn: list[list[Row]] = [[] for _ in range(request.config.num_responses)]
        self.writing: list[Row] = []
        self._finished: dict[int, Reply] = {}
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | PrefannoError | None] = asyncio.Queue()

    async def events(self) -> AsyncGenerator[Event]:
        """What happens, until all candidates are written. Raises what ended it before that. Leaving cancels it."""
        try:
            while (event := await self._events.get()) is not None:
                if isinstance(event, PrefannoError):
                    raise event
                yield event
        finally:
            self.cancel()

    async def replies(self) -> list[Reply]:
        """All candidates, in their order; raises as `events`."""
        found = {event.ordinal: event.reply async for event in self.events() if isinstance(event, Finished)}
        return [found[ordinal] for ordinal in sorted(found)]

    def fail(self, error: PrefannoError) -> None:
        """End it with an error."""
        self.is_over = True
        self.put(error)

    def put(self, event: Event | PrefannoError | None) -> None:
        """Tell the client, from any thread; None: that was all."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def cancel(self) -> None:
        """Nobody waits any more: its rows leave the batch at the next step."""
        self.cancelled = True
        for row in self.writing:
            row.wanted = False

    def ask_less(self) -> bool:
        """Be content with half of the memory: alone, then with fewer rows at once. False where that is not possible."""
        if self.is_alone:
            self.at_once = min(self.at_once, len(self.writing)) // 2
        self.is_alone = True
        return self.at_once > 0

    def next_rows(self, vocabulary: Vocabulary) -> list[Row]:
        """The rows to be written next: those missing, empty or like one before."""
        ordinals = [ordinal for ordinal, drawn in enumerate(self._drawn) if self._is_wanted(ordinal, drawn)]
        self.writing = [self._row(vocabulary, ordinal) for ordinal in ordinals[: self.at_once]]
        return [] if self.cancelled else self.writing

    def _is_wanted(self, ordinal: int, drawn: Sequence[Row]) -> bool:
        if not drawn or drawn[-1].finish_reason is None:  # the batch that it was in broke off
            return True
        if len(drawn) == DRAWS:
            return False
        reply = drawn[-1].reply()
        others = [each[-1].reply().content for each in self._drawn[:ordinal] if each]
        return not reply.content or _resembles(reply.content, others)

    def _row(self, vocabulary: Vocabulary, ordinal: int) -> Row:
        drawn = self._drawn[ordinal]
        told = drawn[-1].told if drawn else ("", "")
        if drawn and drawn[-1].finish_reason is None:
            drawn.pop()
        row = Row(vocabulary, self.request.config, ordinal + 1, seed_of(self.request.seed, ordinal, len(drawn)))
        row.told = told
        drawn.append(row)
        return row

    def tell(self) -> None:
        """Tell the client what its rows have to show since the last time."""
        for row in self.writing:
            if self.request.streams and (delta := row.news()):
                self.put(delta)
            if row.finish_reason is not None:
                self._tell_finished(row)

    def finish(self) -> None:
        """Tell the client that all is written, where it is, and no candidate has to be drawn again."""
        if not self.cancelled and not any(self._is_wanted(*each) for each in enumerate(self._drawn)):
            self.is_over = True
            self.put(None)

    def _tell_finished(self, row: Row) -> None:
        if row.ordinal not in self._finished or self._finished[row.ordinal].seed != row.seed:
            reply = _never_empty(row.reply())
            self._finished[row.ordinal] = reply
            self.put(Finished(row.ordinal, reply))


def _resembles(content: str, others: Sequence[str]) -> bool:
    text = " ".join(content.casefold().split())
    for other in others:
        matcher = difflib.SequenceMatcher(None, text, " ".join(other.casefold().split()), autojunk=False)
        if matcher.quick_ratio() > NEAR_DUPLICATE and matcher.ratio() > NEAR_DUPLICATE:
            return True
    return False


def _never_empty(reply: Reply) -> Reply:
    return reply if reply.content else replace(reply, content=FALLBACK)
