"""What is told of the run under way, to all who follow it: each line of its log once, and each change."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefanno.training.log import Line, RunLog

BURST = 500  # lines told in one step of the loop


@dataclass(frozen=True)
class Status:
    """A change of `running`; followers get it in its place among the lines."""

    running: bool


@dataclass(frozen=True)
class Progress:
    """What a line says that has not ended yet, as a progress bar's; it is told when it changes."""

    message: str


News = Line | Status | Progress
Follower = Callable[[News], None]


class Channel:
    """The log of the run under way, else of the last one, and who follows it. Reading it raises OSError."""

    def __init__(self) -> None:
        self.log = RunLog(Path())
        self.followers: set[Follower] = set()

    async def show(self, log: RunLog, *, ended: bool) -> None:
        """Take up this log; what is in it is history, which nobody is told."""
        self.log = log
        await asyncio.to_thread(log.skip)  # a long log shall not keep the server from starting
        while True:
            log.keep(await asyncio.to_thread(log.poll, ended))
            if log.at_end:
                return

    async def publish(self, final: bool = False) -> None:
        """Tell what is new in the next piece of the log; `final` as for `RunLog.poll`."""
        before = self.log.progress
        lines = await asyncio.to_thread(self.log.poll, final)
        for start in range(0, len(lines), BURST):
            burst = lines[start : start + BURST]
            self.log.keep(burst)  # and told in the same step of the loop: who follows from now on gets each line once
            for line in burst:
                self.tell(line)
            await asyncio.sleep(0)  # who reads well shall not fall behind in a burst
        if (now_says := self.log.progress) not in ("", before):
            self.tell(Progress(now_says))

    async def publish_rest(self) -> None:
        """Tell all that an ended run printed."""
        await self.publish(final=True)
        while not self.log.at_end:
            await self.publish(final=True)

    def tell(self, news: News) -> None:
        """Tell all followers."""
        for follower in list(self.followers):
            follower(news)
