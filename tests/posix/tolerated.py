"""Every difference between a mount and a native file system that is not a fault, and why.

This is the whole list. What POSIX leaves to the system is not compared, where the outcome is made:
sizes of directories, allocated blocks, numbers of inodes (but which names share one, and that it
stays), the order of a listing, lseek(2) in a directory (but that places stay valid), how "." and
".." are listed, and times that the clock gave (but whether an operation moved them).

And what no file system under FUSE and libfuse can know:
- times of a fifo that is read and written: the kernel keeps them to itself (operation.shown_times);
- whether a writer is in the group of a file with sgid and no group execution (shown_mode);
- whether chown(2) to -1, -1 asks or the kernel before a write, where a file has a capability, or
  set-id bits and another owner (attributes.Chown);
- XATTR_CREATE and XATTR_REPLACE together, which pyfuse3 takes for the first (not generated);
- whether bytes come through a mapping, which leaves suid, sgid and capabilities: a mount takes them
  as for a write (contents.MapWrite lets such files alone);
- that fallocate(2) fails before the kernel takes set-id bits for it, once (contents.Fallocate).

And where tmpfs is not as ext4 and others:
- it does not mark the times of a mapped write (contents.MapWrite sets them), nor of truncate(2) to
  the same size unless it has pages (contents.Truncate), nor the ctime where truncate(2) takes sgid
  (not watched).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from tests.posix.contents import Fallocate, Open, SeekHole
from tests.posix.operation import Failed, Operation, Outcome


@dataclass(frozen=True)
class Tolerance:
    """A mount's own answer: where ``answers`` says yes, the native system is not even asked.

    So it changes nothing there that it did not change in the mount.
    """

    reason: str
    answers: Callable[[Operation, Outcome], bool]


def _no_fallocate(operation: Operation, mount: Outcome) -> bool:
    return isinstance(operation, Fallocate) and mount == Failed("ENOTSUP")


def _no_tmpfile(operation: Operation, mount: Outcome) -> bool:
    return (
        isinstance(operation, Open)
        and operation.flags & os.O_TMPFILE == os.O_TMPFILE
        and mount == Failed("ENOTSUP")
    )


def _all_data(operation: Operation, mount: Outcome) -> bool:
    if not isinstance(operation, SeekHole) or not isinstance(mount, tuple):
        return False
    found, size = mount
    wanted = operation.offset if operation.whence == os.SEEK_DATA else size
    return bool(operation.offset < size and found == wanted)


TOLERANCES = [
    Tolerance(
        "pyfuse3 hands no fallocate through, so the kernel answers EOPNOTSUPP after its own checks;"
        " a file's space is that of its chunks, and nothing could be reserved",
        _no_fallocate,
    ),
    Tolerance(
        "pyfuse3 hands no tmpfile through; programs that want O_TMPFILE fall back by themselves",
        _no_tmpfile,
    ),
    Tolerance(
        "pyfuse3 hands no lseek through, so for SEEK_HOLE and SEEK_DATA the kernel takes each file"
        " for data from its first byte to its last, as lseek(2) allows",
        _all_data,
    ),
]


def tolerated(operation: Operation, mount: Outcome) -> Tolerance | None:
    """Return why the mount may answer so whatever the native file system says."""
    bare = mount
    if operation.watch and isinstance(mount, tuple):
        bare = mount[0]
    for tolerance in TOLERANCES:
        if tolerance.answers(operation, bare):
            return tolerance
    return None
