"""A process that acts: as some user, with its own descriptors and locks, in both roots.

    python -m tests.posix.actor UID GROUP... (UID "-": whoever starts it)

Pickled requests come on standard input, each has one pickled answer. An operation is done in the
mount first: where its answer is a tolerated difference, the native system is not asked.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import sys
from pathlib import Path
from typing import BinaryIO

from dedupfs.fuse.mountpoints import write_back
from tests.fuse.harness import PR_SET_DUMPABLE
from tests.posix.messages import Enter, Leave, Look, Make, Run, Tolerated, WriteBack
from tests.posix.operation import Failed, Operation, Outcome, Place, perform
from tests.posix.picture import Picture
from tests.posix.tolerated import tolerated

_NO_WAY_IN = Failed("the mode of a directory above keeps this user out")


class Actor:
    """Answers requests."""

    def __init__(self) -> None:
        self.native: Place | None = None
        self.mount: Place | None = None

    def answer(self, request: object) -> object:
        match request:
            case Enter(native, mount):
                self.leave()
                return self.enter(native, mount)
            case WriteBack(mount):
                write_back(Path(os.fsdecode(mount)))
            case Leave():
                self.leave()
            case Make(top, below):
                os.umask(0)
                os.makedirs(top + b"/" + below, 0o777)
            case Run(operations):
                return [self.do(operation) for operation in operations]
            case Look(path):
                place = _place(path)
                try:
                    return perform(Picture(b"."), place)
                finally:
                    place.leave()
        return None

    def enter(self, native: bytes, mount: bytes) -> tuple[Outcome, Outcome]:
        """Both or none: the mode of the directories above may keep a user out."""
        failed: list[Outcome] = [None, None]
        for index, path in enumerate((native, mount)):
            try:
                place = _place(path)
            except OSError as exc:
                failed[index] = Failed(errno.errorcode[exc.errno or 0])
            else:
                setattr(self, "mount" if index else "native", place)
        return failed[0], failed[1]

    def do(self, operation: Operation) -> tuple[Outcome, Outcome]:
        if self.native is None or self.mount is None:
            return _NO_WAY_IN, _NO_WAY_IN
        in_mount = perform(operation, self.mount)
        tolerance = tolerated(operation, in_mount)
        if tolerance is not None:
            return Tolerated(tolerance.reason), in_mount
        return perform(operation, self.native), in_mount

    def leave(self) -> None:
        for place in (self.native, self.mount):
            if place is not None:
                place.leave()
        self.native = self.mount = None


def _place(path: bytes) -> Place:
    return Place(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def become(uid: int, groups: list[int]) -> None:
    os.setgroups(groups)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # Or /proc/self/fd would stay root's.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    actor = Actor()
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            actor.leave()
            return
        pickle.dump(actor.answer(request), answers)
        answers.flush()


if __name__ == "__main__":
    if sys.argv[1] != "-":
        become(int(sys.argv[1]), [int(group) for group in sys.argv[2:]])
    main(sys.stdin.buffer, sys.stdout.buffer)
