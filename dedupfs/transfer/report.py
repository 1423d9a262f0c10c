"""What an import or export tells while it runs and when it has ended. Knows no store and no I/O."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from dedupfs.model import SnapshotInfo


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that could not be transferred as it is; everything else went on."""

    path: bytes
    message: str

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.message}"


@dataclass(slots=True)
class Progress:
    """How far a transfer has come; the same object is passed again and again."""

    files_total: int = 0
    bytes_total: int = 0
    files_done: int = 0
    bytes_done: int = 0
    path: bytes = b""


OnProgress = Callable[[Progress], None]
OnProblem = Callable[[Problem], None]


@dataclass(slots=True)
class IngestReport:
    """The result of an import: the snapshot and what it took to make it."""

    snapshot: SnapshotInfo | None = None
    files: int = 0
    directories: int = 0
    logical_bytes: int = 0
    files_unchanged: int = 0
    bytes_read: int = 0
    cloned: int = 0
    linked: int = 0
    """Files that were adopted: the store shares their blocks, or has made them read-only."""
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)


@dataclass(slots=True)
class ExportReport:
    """The result of an export. ``damaged``: files left out because the store has lost them."""

    files: int = 0
    directories: int = 0
    logical_bytes: int = 0
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)
    damaged: int = 0


class Problems:
    """Collects problems and passes each on at once."""

    def __init__(self, collected: list[Problem], on_problem: OnProblem | None) -> None:
        self._collected = collected
        self._on_problem = on_problem

    def add(self, path: bytes, message: str) -> None:
        """Note that something went wrong with ``path``."""
        problem = Problem(path, message)
        self._collected.append(problem)
        if self._on_problem is not None:
            self._on_problem(problem)

    def add_os_error(self, path: bytes, what: str, exc: OSError) -> None:
        """Note a failed system call: what was tried, and what the kernel said."""
        self.add(path, f"{what}: {exc.strerror or exc}")


def shown(path: bytes) -> str:
    """Return ``path`` fit for one line of a terminal: control and undecodable bytes escaped."""
    return printable(os.fsdecode(path) or ".")


def printable(text: str) -> str:
    """Return ``text`` with everything escaped that a terminal could take for more than text."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else _escaped(character) for character in text
    )


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that is no text
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
