"""Writes over HTTP: in the database's next transaction, and once for each `Idempotency-Key`."""

import hashlib
import re

from aiohttp import web

from prefanno.db.idempotency import Answer, Work, once
from prefanno.errors import InvalidInput
from prefanno.keys import LOOP

HEADER = "Idempotency-Key"
KEY = re.compile(r"[\x21-\x7e]{1,200}")


async def written(request: web.Request, work: Work) -> Answer:
    """What `work` returns, on the disk; with a key that was used before for the same request, its first answer.

    Raises what `work` raises, InvalidInput, KeyReused, StorageFull or DatabaseUnavailable.
    """
    database, keys = request.app[LOOP].database, request.headers.getall(HEADER, [])
    if not keys:
        return await database.write(work)
    if len(keys) > 1 or not KEY.fullmatch(keys[0]):
        raise InvalidInput({HEADER: ["必须是一个 1 到 200 个可见 ASCII 字符的值"]})
    asked = b"\n".join([request.method.encode(), request.path_qs.encode(), await request.read()])
    return await database.write(once(keys[0], hashlib.sha256(asked).hexdigest(), work))
