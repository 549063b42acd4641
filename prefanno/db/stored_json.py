"""JSON as the tables hold it: compact, Chinese as it is. orjson, because half of an export's time is reading it."""

from typing import Any

import orjson


def dumps(value: Any) -> str:
    """The value as text."""
    return orjson.dumps(value).decode()


loads = orjson.loads
