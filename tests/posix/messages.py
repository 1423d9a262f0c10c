"""What an actor is asked and answers, beside plain outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.posix.operation import Operation


@dataclass(frozen=True)
class Enter:
    """Work below these two directories; what was open before is closed."""

    native: bytes
    mount: bytes


@dataclass(frozen=True)
class Leave:
    """Close everything that is open, so that the mount can go."""


@dataclass(frozen=True)
class WriteBack:
    """Have the kernel hand over what it keeps of writes to this mount."""

    mount: bytes


@dataclass(frozen=True)
class Make:
    """Make a directory for all to work in, with its parents (which are no work's)."""

    top: bytes
    below: bytes


@dataclass(frozen=True)
class Run:
    """Do these; the answer has (native, mount) for each, or the reason why native was not asked."""

    operations: Sequence[Operation]


@dataclass(frozen=True)
class Look:
    """Return the picture of one directory tree."""

    path: bytes


@dataclass(frozen=True)
class Tolerated:
    """Stands for the native outcome of an operation whose difference is tolerated."""

    reason: str
