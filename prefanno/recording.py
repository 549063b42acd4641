"""How a generation is stored: the request, what answered it, and the candidates with what is known of each."""

import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import conversations
from prefanno.db.engine import Database
from prefanno.db.models import Candidate, Generation, Prompt
from prefanno.generation.config import Event, Finished, Reply, Request
from prefanno.generation.engine import Loaded
from prefanno.generation.job import Job


@dataclass(frozen=True)
class Answered:
    """A generation as it was stored, and its candidates by their ordinals."""

    generation: Generation
    replies: dict[int, Reply]


@dataclass(frozen=True)
class Origin:
    """What a job was made with: the base model and what is loaded on it, the turn it goes on from, its prompt."""

    base_model: str
    loaded: Loaded
    turn: Generation | None = None
    prompt: int | None = None

    @property
    def adapter(self) -> str | None:
        """The loaded adapter, as tables name it."""
        return Path(self.loaded.adapter).name if self.loaded.adapter else None

    def made(self, generation: Generation) -> bool:
        """Whether it was made with the same base model, adapter and settings, the persona among them."""
        made = (generation.base_model, generation.adapter, generation.settings)
        return made == (self.base_model, self.adapter, asdict(self.loaded.config))


async def follow(database: Database, origin: Origin, job: Job) -> AsyncGenerator[Event | Answered]:
    """What happens while the job is written, at last the candidates as they were stored. Who stops reading cancels it.

    Raises what ends the job, StorageFull or DatabaseUnavailable.
    """
    replies: dict[int, Reply] = {}
    async with contextlib.aclosing(job.events()) as events:
        async for event in events:
            if isinstance(event, Finished):
                replies[event.ordinal] = event.reply
            yield event
    row = await database.write(lambda session: record(session, origin, job.request, replies))
    yield Answered(row, replies)


async def stored(generation: Generation, candidates: Sequence[Candidate]) -> AsyncGenerator[Event | Answered]:
    """What was written before, as if it was written now."""
    replies = {
        one.ordinal: Reply(**{spec.name: getattr(one, spec.name) for spec in fields(Reply)}) for one in candidates
    }
    for ordinal, reply in replies.items():
        yield Finished(ordinal, reply)
    yield Answered(generation, replies)


async def record(session: AsyncSession, origin: Origin, request: Request, replies: Mapping[int, Reply]) -> Generation:
    """Store the candidates of a request, by their ordinals; its prompt has them, where it is still there."""
    row = Generation(
        character=origin.loaded.character,
        message=request.message,
        context=[dict(turn) for turn in request.context],
        settings=asdict(origin.loaded.config),
        base_model=origin.base_model,
        adapter=origin.adapter,
        seed=request.seed,
    )
    await conversations.place(session, row, origin.turn)
    for ordinal, reply in sorted(replies.items()):
        session.add(Candidate(generation_id=row.id, ordinal=ordinal, **asdict(reply)))
    prompt = await session.get(Prompt, origin.prompt) if origin.prompt is not None else None
    if prompt is not None and prompt.generation_id is None:
        prompt.generation_id, prompt.disagreement = row.id, disagreement(replies)
    return row


def disagreement(replies: Mapping[int, Reply]) -> float | None:
    """How much the model prefers its favourite among these to the one it likes least; None where that is unknown.

    The difference between the largest and the smallest mean log-probability. That mean is the reward that SimPO trains
    by, but for its factor (Meng et al. 2024, equation 4): where it differs most the model's own preference is
    strongest, and a person who prefers otherwise teaches it most (Muldrew et al. 2024).
    """
    means = [reply.mean_logprob for reply in replies.values() if reply.mean_logprob is not None]
    return max(means) - min(means) if len(means) > 1 else None
