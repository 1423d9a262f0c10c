"""What a process was about to do and what it had done, written where no power cut reaches.

One JSON object on a line: ``{"n": 7, "op": "write", ...}`` before the call, and ``{"n": 7, "end":
null, ...}`` behind it, or with the name of its errno. The last call of a ledger may have no end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CUT = "cut"
"""The end of a call that failed because the power was gone: it may have been done or not."""


class Ledger:
    """Appends; each line is one write(2), so that it outlives its writer."""

    def __init__(self, path: Path, first_number: int) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._next = first_number

    def begin(self, op: str, **arguments: Any) -> int:
        """Note that a call is about to be made; return its number."""
        number = self._next
        self._next += 1
        self._write({"n": number, "op": op, **arguments})
        return number

    def end(self, number: int, error: str | None = None, **results: Any) -> None:
        """Note that it returned."""
        self._write({"n": number, "end": error, **results})

    def peek(self) -> int:
        """Return the number that the next call will have."""
        return self._next

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._fd, json.dumps(line).encode() + b"\n")


@dataclass
class Op:
    """One call: ``done`` when it returned success."""

    number: int
    name: str
    arguments: dict[str, Any]
    ended: bool = False
    error: str | None = None
    late: bool = False
    """Whether it returned when the power was going already: what it said counts for nothing."""
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.ended and self.error is None

    @property
    def promised(self) -> bool:
        """Whether it returned success while the power was on."""
        return self.done and not self.late

    @property
    def unsure(self) -> bool:
        """Whether the power went while it was under way."""
        return not self.ended or self.error == CUT

    def __str__(self) -> str:
        said = " ".join(f"{key}={value}" for key, value in self.arguments.items())
        outcome = "" if self.done else " (unsure)" if self.unsure else f" ({self.error})"
        return f"{self.number} {self.name} {said}{outcome}"


def read_ledger(path: Path, cut_at: int | None = None) -> list[Op]:
    """Return the calls of a ledger in order; there need be no file.

    ``cut_at``: its length when the power began to go. Nothing is told behind that in reality, but
    an fsync(2) on ext4 that is under way during FS_IOC_SHUTDOWN may return 0 and have lost the
    bytes: three of at most 150 cuts under a plain loop of pwrite and fdatasync did (Linux 6.18).
    """
    ops: dict[int, Op] = {}
    for stop, line in _lines(path):
        number = line.pop("n")
        if "op" in line:
            ops[number] = Op(number, line.pop("op"), line)
        else:
            op = ops[number]
            op.ended, op.error, op.results = True, line.pop("end"), line
            op.late = cut_at is not None and stop > cut_at
    return list(ops.values())


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each line, and where it ends."""
    if not path.exists():
        return
    stop = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):  # else its writer was killed in the middle
            stop += len(line)
            yield stop, json.loads(line)
