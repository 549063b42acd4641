"""One request on its way through the engine: its rows, their redraws, and what its client is told.

The event loop makes a job, puts its events, reads them and cancels it; the engine's thread writes its rows.
"""

import asyncio
import difflib
import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from prefanno.errors import PrefannoError
from prefanno.generation.config import Event, Finished, Queued, Reply, Request
from prefanno.generation.sampling import seed_of
from prefanno.generation.writing import Row, Vocabulary

DRAWS = 3
NEAR_DUPLICATE = 0.9  # share of equal text above which a person would see the same reply twice
FALLBACK = "……"  # what a character "says" when the model wrote nothing but tags, three times over


class Job:
    """A request, and its events as they come.

    It runs whether anybody reads or not; one reader may come at any time, and has all events. `client` and `streams`
    are the request's, until somebody waits for what was written ahead of time. `ended` is set when the job is over:
    all is written, it failed (`failure`), or its reader has left. By its `id` it can be cancelled.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.id = request.id or secrets.token_hex(8)
        self.client, self.streams = request.client, request.streams
        self.queued: Queued | None = None
        self.prompt_tokens = 0  # until its prompt is read
        self.ended = asyncio.Event()
        self.cancelled = self.is_over = False
        self.at_once = request.config.num_responses  # rows in one batch
        self.is_alone = False  # in its batch
        self._drawn: list[list[Row]] = [[] for _ in range(request.config.num_responses)]
        self.writing: list[Row] = []
        self.written: dict[int, Reply] = {}  # by ordinal; one that is drawn again is replaced
        self.failure: PrefannoError | None = None
        self._events: asyncio.Queue[Event | PrefannoError | None] = asyncio.Queue()

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody wants more of it than there is."""
        return self.client is not None and not self.cancelled and not self.is_over

    @property
    def tokens(self) -> int:
        """How many were generated so far for its candidates, as they were drawn last."""
        return sum(drawn[-1].tokens for drawn in self._drawn if drawn)

    @property
    def is_going(self) -> bool:
        """Whether some of its rows take part in the next step."""
        return any(row.going for row in self.writing)

    async def events(self) -> AsyncGenerator[Event]:
        """What happens, until all candidates are written. Raises what ended it before that. Leaving cancels it."""
        try:
            if self.queued is not None:
                yield self.queued
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
        self.failure = error
        self.put(error)
        self.cancel()

    def put(self, event: Event | PrefannoError | None) -> None:
        """Tell the client; None: that was all."""
        self._events.put_nowait(event)
        if event is None or isinstance(event, PrefannoError):
            self.is_over = True
            self.ended.set()

    def cancel(self) -> None:
        """Nobody waits any more: its rows leave the batch at the next step."""
        self.cancelled = True
        for row in self.writing:
            row.wanted = False
        self.ended.set()

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

    def tell(self) -> list[Event | None]:
        """What the client does not know yet; None at the end: all is written, and nothing has to be drawn again."""
        if self.cancelled:
            return []
        events: list[Event | None] = [event for row in self.writing for event in self._tell(row)]
        if not self.is_going and not any(self._is_wanted(*each) for each in enumerate(self._drawn)):
            events.append(None)
        return events

    def _tell(self, row: Row) -> list[Event]:
        told = self.written.get(row.ordinal)
        if told is not None and told.seed == row.seed:
            return []
        news = row.news() if self.streams else None
        events: list[Event] = [news] if news else []
        if row.finish_reason is not None:
            self.written[row.ordinal] = _never_empty(row.reply())
            events.append(Finished(row.ordinal, self.written[row.ordinal]))
        return events


def _resembles(content: str, others: Sequence[str]) -> bool:
    text = " ".join(content.casefold().split())
    for other in others:
        matcher = difflib.SequenceMatcher(None, text, " ".join(other.casefold().split()), autojunk=False)
        if matcher.quick_ratio() > NEAR_DUPLICATE and matcher.ratio() > NEAR_DUPLICATE:
            return True
    return False


def _never_empty(reply: Reply) -> Reply:
    return reply if reply.content else replace(reply, content=FALLBACK)
