"""A mount that tells which requests the kernel made of it.

The daemon logs every request, as any daemon does for ``--debug``, before it answers; so what a
system call has asked for stands in the log when it returns. What the kernel sends afterwards, such
as the release of a closed file, it sends in order: statfs, which is never cached, comes behind it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from os import statvfs

from tests.fuse.harness import Mounted

_LINE = re.compile(r"DEBUG dedupfs\.fuse\.operations: (\w+)\((.*)")
_LAST = "statfs"
_TRIES = 3
_SIZED = re.compile(r"\d+, \d+, (\d+)\)")
Try = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the name of its handler, and the beginning of the handler's arguments."""

    name: str
    arguments: str

    @property
    def size(self) -> int:
        """How many bytes a read asks for."""
        sized = _SIZED.match(self.arguments)
        assert self.name == "read"
        assert sized is not None
        return int(sized[1])


class Counted:
    """A traced mount, and how it was mounted."""

    def __init__(self, mounted: Mounted, *, plain: bool, read_only: bool) -> None:
        self.path = mounted.path
        self.known = self.path / "known"
        self.plain = plain
        self.read_only = read_only
        self._log = mounted.log_path.open()

    def close(self) -> None:
        self._log.close()

    @cached_property
    def gathers(self) -> bool:
        """Whether the kernel keeps what is written until a close (FUSE_WRITEBACK_CACHE).

        It then owns size and times of regular files, so it tells us of times that calls change, and
        does not believe how many blocks a file has once it was closed (fs/fuse/file.c, fuse_flush).
        """

        def write_twice() -> None:
            with (self.path / "gathered").open("wb", buffering=0) as file:
                file.write(b"one")
                file.write(b"two")

        asked = [] if self.read_only else [ask.name for ask in self.requests(write_twice)]
        return asked.count("write") == 1

    def requests(self, call: Callable[[], object]) -> list[Request]:
        """Return what the kernel asks while ``call`` runs, and because of it."""
        self._until_now()
        call()
        return self._until_now()

    def fewest(self, call: Try, before: Try | None = None) -> list[Request]:
        """Return the fewest requests of several tries, each of which is told its number.

        What the kernel knows it may forget at any time: when memory is short, or when anybody on
        the machine says so in /proc/sys/vm/drop_caches. So what a try needs to be known is looked
        at right ``before`` it, uncounted.
        """
        tries = []
        for number in range(_TRIES):
            if before is not None:
                before(number)
            tries.append(self.requests(partial(call, number)))
        return min(reversed(tries), key=len)  # of equals the last, which knows most

    def names(self, call: Try, before: Try | None = None) -> list[str]:
        """Return the names of the fewest requests, in their order."""
        return [request.name for request in self.fewest(call, before)]

    def counts(self, call: Try, before: Try | None = None) -> dict[str, int]:
        """Return how many of the fewest requests there are of each name."""
        return dict(Counter(self.names(call, before)))

    def _until_now(self) -> list[Request]:
        statvfs(self.path)
        found = [_LINE.match(line) for line in self._log]
        said = [Request(match[1], match[2]) for match in found if match is not None]
        assert said[-1].name == _LAST
        return [request for request in said if request.name != _LAST]
