"""Reads an strace of the server: which adds were answered before a sync of the write-ahead log that follows them.

A line of the trace stands where a call began and, where another thread came between, once more where it ended. So the
order of the lines is the order of what happened. A commit is the last frame of a transaction in the log: its header
of 24 bytes names the size of the database, other headers have 0 there.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

STRACE = ("strace", "-f", "-ttt", "-y", "-xx", "-s", "8192", "--seccomp-bpf")
CALLS = "trace=fdatasync,fsync,pwrite64,write,writev,sendto,sendmsg"

CALL = re.compile(r"(?P<thread>\d+) +[\d.]+ (?P<name>\w+)\(\d+<(?P<file>[^>]*)>(?P<rest>.*)")
RESUMED = re.compile(r"(?P<thread>\d+) +[\d.]+ <\.\.\. (?P<name>\w+) resumed>.*= (?P<result>-?\d+)")
BYTES = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
TEXT = re.compile(rb"add-\d{6}-[0-9a-f]{8}")
ANSWER = re.compile(rb'"id": (\d+)')
HEADER = 24  # bytes of a frame's header
SYNCS = ("fdatasync", "fsync")


@dataclass
class Gate:
    """What was seen so far; `early` holds the adds that were answered too soon, `syncs` counts those of the log."""

    texts: dict[int, str]  # by the id that the answer names
    answered: set[str] = field(default_factory=set)
    early: list[str] = field(default_factory=list)
    syncs: int = 0
    _committing: bool = False  # the page that comes next is the last of its transaction
    _open: set[str] = field(default_factory=set)  # written, not committed
    _committed: set[str] = field(default_factory=set)
    _syncing: dict[str, set[str]] = field(default_factory=dict)  # by thread
    _synced: set[str] = field(default_factory=set)

    def read(self, lines: Iterable[str]) -> "Gate":
        """Take in a trace."""
        for line in lines:
            if call := CALL.match(line):
                self._begun(call)
            elif (resumed := RESUMED.match(line)) and resumed["name"] in SYNCS and resumed["result"] == "0":
                self._synced |= self._syncing.pop(resumed["thread"], set())
        return self

    def _begun(self, call: re.Match[str]) -> None:
        file = bytes.fromhex(call["file"].replace("\\x", "")) if "\\x" in call["file"] else call["file"].encode()
        if file.endswith(b"-wal") and call["name"] in SYNCS:
            self.syncs += 1
            self._syncing[call["thread"]] = self._committed
            self._committed = set()
            if call["rest"].endswith("= 0"):
                self._synced |= self._syncing.pop(call["thread"])
        elif file.endswith(b"-wal"):
            self._log(_content(call["rest"]))
        elif file.startswith((b"socket:", b"TCP:")):
            self._sent(_content(call["rest"]))

    def _log(self, content: bytes) -> None:
        if len(content) == HEADER:
            self._committing = content[4:8] != bytes(4)
            return
        self._open |= {found.decode() for found in TEXT.findall(content)} - self._committed - self._synced
        if self._committing:
            self._committed |= self._open
            self._open = set()

    def _sent(self, content: bytes) -> None:
        for number in ANSWER.findall(content):
            text = self.texts[int(number)]
            self.answered.add(text)
            if text not in self._synced:
                self.early.append(text)


def _content(rest: str) -> bytes:
    return b"".join(bytes.fromhex(found.replace("\\x", "")) for found in BYTES.findall(rest))
