"""Fields of an entry that may hold anything: each is asked for with the type that it must have."""

import reprlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from prefanno.prompting import Message
from prefanno.rows import Fault, Found, Mode, Row

from .containers import Entries

MODES: tuple[Mode, ...] = ("single", "multi")
HEAVIEST = 100.0  # times that a choice may count; each is an example of its own in every epoch
MOST = 10_000  # items of a list: each takes a hundred times what it took in the file
SHOWN = 60  # characters of a value in a message: a report keeps a thousand messages
Turns = tuple[str, list[Message], str]  # system prompt, earlier turns, what the user says now


class Entry:
    """A JSON object, and where it stands; every method raises Fault with the name of the field."""

    __slots__ = ("_value", "path")

    def __init__(self, value: Any, path: str = "") -> None:
        if isinstance(value, Fault):
            raise value
        if not isinstance(value, dict):
            raise must_be(path.rstrip(".") or "the row", "a JSON object", "JSON 对象")
        self._value, self.path = value, path

    def __contains__(self, name: str) -> bool:
        return self._value.get(name) is not None

    def names(self) -> Iterator[str]:
        """The names of the fields."""
        return iter(self._value)

    def get(self, name: str) -> Any:
        """Whatever the field holds; None where it is missing."""
        return self._value.get(name)

    def text(self, name: str) -> str:
        """A string."""
        value = self._needed(name)
        if not isinstance(value, str):
            raise must_be(self.path + name, "a string", "字符串")
        return value

    def optional(self, name: str) -> str | None:
        """A string; None where it is missing, null or empty."""
        return (self.text(name) or None) if name in self else None

    def entry(self, name: str) -> "Entry":
        """An object."""
        return Entry(self._needed(name), f"{self.path}{name}.")

    def entries(self, name: str) -> list["Entry"]:
        """A list of objects."""
        return [Entry(value, f"{self.path}{name}.{at}.") for at, value in enumerate(self.list(name))]

    def list(self, name: str) -> Sequence[Any]:
        """A list."""
        value = self._needed(name)
        if not isinstance(value, list):
            raise must_be(self.path + name, "a list", "数组")
        if len(value) > MOST:
            raise must_be(self.path + name, f"a list of {MOST} items at most", f"最多 {MOST} 项的数组")
        return value

    def flag(self, name: str) -> bool:
        """A truth value."""
        value = self._needed(name)
        if not isinstance(value, bool):
            raise must_be(self.path + name, "true or false", "true 或 false")
        return value

    def weight(self, name: str) -> float:
        """A number above 0, at most `HEAVIEST`; 1 where it is missing or null, as tools write it that keep tables."""
        value = self._value[name] if name in self else 1
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
        try:
            weight = float(number)
        except OverflowError:  # an integer of hundreds of digits
            weight = 0.0
        if not 0 < weight <= HEAVIEST:
            raise no_weight(self.path + name, value)
        return weight

    def time(self, name: str) -> datetime:
        """UTC without a zone, as the tables hold it; without a zone it is taken for UTC. Now where it is missing."""
        return time(self.path + name, self.optional(name))

    def mode(self, name: str) -> Mode | None:
        """A mode; None where it is missing."""
        if name not in self:
            return None
        for mode in MODES:
            if self._value[name] == mode:
                return mode
        raise must_be(self.path + name, f"single or multi, not {shown(self._value[name])}", "single 或 multi")

    def _needed(self, name: str) -> Any:
        if name not in self:
            raise Fault(f"{self.path}{name} is missing", f"缺少 {self.path}{name}")
        return self._value[name]


def rows(entries: Entries, read: Callable[[Entry], Row]) -> Iterator[Found]:
    """What `read` makes of each entry; it raises Fault for a bad one."""
    for line, entry in entries:
        yield line, _row_or_fault(entry, read)
        del entry  # it may be large, and the next one is parsed now


def _row_or_fault(entry: Any, read: Callable[[Entry], Row]) -> Row | Fault:
    try:
        return read(Entry(entry))
    except Fault as fault:
        return without_trace(fault)


def without_trace(fault: Fault) -> Fault:
    """The fault without the frames that it was raised in, which hold the entry: a report keeps a thousand faults."""
    return Fault(str(fault), fault.detail)


def no_weight(path: str, value: Any) -> Fault:
    """The fault of a field that holds no weight."""
    english = f"a number above 0, at most {HEAVIEST:g}, not {shown(value)}"
    return must_be(path, english, f"大于 0 且不超过 {HEAVIEST:g} 的数字")


def must_be(field: str, english: str, chinese: str) -> Fault:
    """A field that holds something else than it must."""
    return Fault(f"{field} must be {english}", f"{field} 必须是{chinese}")


def shown(value: Any) -> str:
    """The start of a value as a message names it; reprlib alone bounds each level, so a deep value gets long."""
    text = reprlib.repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def time(field: str, text: str | None) -> datetime:
    """As `Entry.time`."""
    try:
        moment = datetime.fromisoformat(text) if text else datetime.now(UTC)
        return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        raise must_be(field, f"a time in ISO 8601, not {shown(text)}", "ISO 8601 时间") from None


def turns(messages: Sequence[Entry]) -> Turns:
    """What messages with `role` and `content` say before a reply: a system prompt or none, user and assistant in turn.

    The user speaks last.
    """
    found: list[tuple[str, str]] = [(message.text("role"), message.text("content")) for message in messages]
    system = found.pop(0)[1] if found and found[0][0] in ("system", "developer") else ""
    return system, *alternating(found)


def alternating(found: Sequence[tuple[str, str]]) -> tuple[list[Message], str]:
    """Earlier turns and the last one of (role, content), where user and assistant take turns and the user is last."""
    roles = [role for role, _ in found]
    if not roles or roles != (["assistant", "user"] * len(roles))[-len(roles) :]:
        raise Fault(
            f"user and assistant must alternate and the user must speak last before the reply, not {_short(roles)}",
            f"user 与 assistant 必须交替出现，且回复之前最后一条必须是 user，而不是 {_short(roles)}",
        )
    context: list[Message] = [
        {"role": "user" if role == "user" else "assistant", "content": content} for role, content in found[:-1]
    ]
    return context, found[-1][1]


def _short(roles: Sequence[str]) -> str:
    return ", ".join(shown(role) for role in roles[:6]) + (", …" if len(roles) > 6 else "") or "no turn"  # noqa: PLR2004
