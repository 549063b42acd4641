"""Safe retry: work that is done once for each key, whatever the network does to the answer.

The answer is stored in the same transaction as the work, so either both are there or neither.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import cast, update
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.models import ID, IdempotencyKey
from prefanno.errors import KeyReused

ERASED = ""  # in place of a fingerprint
Answer = dict[str, Any]
Work = Callable[[AsyncSession], Awaitable[Answer]]


async def forget(session: AsyncSession, numbers: Sequence[int]) -> None:
    """Remove all but the keys of what was said of these annotations: a late retry shall not write it anew."""
    about = cast(IdempotencyKey.answer["id"].as_string(), ID)
    await session.execute(update(IdempotencyKey).where(about.in_(numbers)).values(fingerprint=ERASED, answer={}))


def once(key: str, fingerprint: str, work: Work) -> Work:
    """`work`, or its first answer where it was done before. Raises KeyReused where the key was another request's."""

    async def answer(session: AsyncSession) -> Answer:
        known = await session.get(IdempotencyKey, key)
        if known is None:
            result = await work(session)
            session.add(IdempotencyKey(key=key, fingerprint=fingerprint, answer=result))
            return result
        if known.fingerprint == ERASED:
            raise KeyReused("what this Idempotency-Key stored was erased", "该 Idempotency-Key 存入的标注已被永久清除")
        if known.fingerprint != fingerprint:
            raise KeyReused
        return known.answer

    return answer
