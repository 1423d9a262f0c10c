"""Rounds, turns and the record of them. Knows no file system.

The variants of a question take turns within each round, beginning with another one each time, so
that a busy minute of the machine hits all of them. Rounds go on while there is time.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bench.commands import BenchError, reason, remove
from bench.datasets import Scale
from bench.questions import QUESTIONS
from bench.report import result_lines
from bench.results import Result, Run, conclude

ROUNDS_MAX = 7
T = TypeVar("T")


@dataclass
class Harness:
    """One run: where it works, how much of everything, and what has been found so far."""

    directory: Path
    scale: Scale
    run: Run
    rounds: int | None = None
    leave_out: frozenset[str] = frozenset()
    once_seconds: float = field(default=0.0, init=False)
    """What this round has spent on variants that do not take part in the next one."""
    _scratch: int = field(default=0, init=False)

    def scratch(self, name: str) -> Path:
        """Return a new empty directory; everything below the run's one is removed at its end."""
        self._scratch += 1
        path = self.directory / f"{self._scratch}-{name}"
        path.mkdir()
        return path

    @contextmanager
    def borrowed(self, name: str) -> Iterator[Path]:
        """Give a new empty directory for the time of the context."""
        path = self.scratch(name)
        try:
            yield path
        finally:
            remove(path)

    def each_round(self, seconds: float, since: float | None = None) -> Iterator[int]:
        """Count rounds: as many as asked for, or else as many as fit into ``seconds``.

        ``since``: when the time began, where making things ready is to be part of it.
        """
        started = time.monotonic() if since is None else since
        longest = 0.0
        for number in range(self.rounds or ROUNDS_MAX):
            begun = time.monotonic()
            self.once_seconds = 0.0
            yield number
            now = time.monotonic()
            longest = max(longest, now - begun - self.once_seconds)
            if self.rounds is None and now - started + longest > seconds:
                return

    def add(self, result: Result) -> None:
        self.run.results.append(result)
        print("\n".join(result_lines(result)), flush=True)

    def require_room(self, byte_count: int) -> None:
        """Refuse a workload that would fill the disk."""
        free = shutil.disk_usage(self.directory).free
        if free < byte_count:
            raise BenchError(
                f"needs {byte_count >> 20} MiB of disk, {free >> 20} are free: see --directory"
            )


class Record:
    """The values of some questions while the rounds go on."""

    def __init__(self, keys: Sequence[str], variants: Sequence[str]) -> None:
        self._values: dict[str, dict[str, dict[int, float]]] = {
            key: {name: {} for name in variants} for key in keys
        }
        self._reasons: dict[str, dict[str, str]] = {key: {} for key in keys}
        self._rounds = 0

    def turn(self, key: str, variant: str, number: int, work: Callable[[], float]) -> bool:
        """Take the value that ``work`` returns; a failure is the variant's reason, no more."""
        try:
            self.put(key, variant, number, work())
        except (BenchError, OSError) as error:
            self.fail(variant, reason(error), [key])
            return False
        return True

    def put(self, key: str, variant: str, number: int, value: float) -> None:
        self._values[key].setdefault(variant, {})[number] = value
        self._rounds = max(self._rounds, number + 1)

    def fail(self, variant: str, why: str, keys: Sequence[str] = ()) -> None:
        """Say why a variant has no value, for all questions unless ``keys`` names some."""
        for key in keys or list(self._reasons):
            self._reasons[key].setdefault(variant, why)

    def fail_as(self, key: str, other: str, variant: str) -> None:
        """Give a variant's reason for one question for another one too."""
        self.fail(variant, self._reasons[key][variant], [other])

    def has_failed(self, key: str, variant: str) -> bool:
        return variant in self._reasons[key]

    def conclude(self, notes: Mapping[str, str] | str = "") -> list[Result]:
        results = []
        for key, rows in self._values.items():
            values = {
                name: [row.get(number) for number in range(self._rounds)] if row else []
                for name, row in rows.items()
            }
            note = notes if isinstance(notes, str) else notes.get(key, "")
            results.append(conclude(QUESTIONS[key], values, self._reasons[key], note))
        return results


def rotated(items: Sequence[T], number: int) -> list[T]:
    """Return the items, beginning with another one in each round."""
    turn = number % len(items) if items else 0
    return [*items[turn:], *items[:turn]]


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def refuse_unfair_python() -> None:
    """A Python that skips or adds work would measure something else than users get."""
    if not __debug__ or sys.flags.dev_mode or sys.gettrace() is not None:
        raise SystemExit("bench: run it without -O, -X dev and tracing")
