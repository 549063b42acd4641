"""Writing without an engine, in the thread of the test."""

import asyncio
from collections.abc import Sequence
from typing import Any

from prefanno.generation.batch import Batch
from prefanno.generation.config import GenerationConfig, Reply, Request
from prefanno.generation.decoding import Decoding
from prefanno.generation.job import Job
from prefanno.generation.model import LocalModel
from prefanno.generation.writing import Row, Vocabulary
from prefanno.prompting import ChatTemplate, Message


def answer(
    model: LocalModel, config: GenerationConfig, message: str, context: Sequence[Message] = (), seed: int = 7
) -> list[Reply]:
    """The candidates for a message, as the engine's thread writes them."""

    async def write() -> list[Reply]:
        job = Job(Request(message, context, seed, config))
        while not job.is_over:
            decoding = Decoding()
            decoding.jobs.append(job)
            decoding.read(model, job)
            decoding.write(lambda: False)
            await asyncio.sleep(0)  # what was told arrives
        return await job.replies()

    return asyncio.run(write())


def vocabulary(model: Any, tokenizer: Any) -> Vocabulary:
    """What the tokens of a model mean that is no LocalModel."""
    return Vocabulary.of(tokenizer, ChatTemplate.of(tokenizer), model.generation_config.eos_token_id)


def write(model: Any, known: Vocabulary, prompts: Sequence[tuple[str, Sequence[Row]]]) -> list[Reply]:
    """What comes of these rows, in one batch."""
    batch = Batch(model, known.ends)
    for prompt, rows in prompts:
        batch.add(known.encode(prompt), list(rows))
    while batch.is_going:
        batch.step()
    return [row.reply() for _, rows in prompts for row in rows]
