"""What the kernel's overlayfs leaves in an upper directory: the marks, told from users' attributes.

Knows no store. Source: Linux Documentation/filesystems/overlayfs.rst, fs/overlayfs/xattrs.c.
"""

import stat
from dataclasses import dataclass
from os import stat_result

from dedupfs.errors import SourceError
from dedupfs.transfer.metadata import Xattrs
from dedupfs.transfer.report import shown

ROOTS_PREFIX = b"trusted.overlay."
USERS_PREFIX = b"user.overlay."
"""Of a mount with ``userxattr``, as all are that are made in a user namespace."""
_ESCAPE = b"overlay."
_NEVER_MADE = (b"redirect", b"metacopy")


@dataclass(frozen=True, slots=True)
class Marks:
    """What overlayfs says of one object."""

    is_opaque: bool = False
    """A directory that hides what is below it."""
    has_whiteout_files: bool = False
    """A directory in which a file with a mark may stand for a name that is gone."""
    is_whiteout_file: bool = False


def split_xattrs(xattrs: Xattrs, prefix: bytes, path: bytes) -> tuple[Marks, Xattrs]:
    """Tell overlayfs's marks from the attributes that programs have set.

    A program's own attribute under the prefix was escaped by the kernel, and is itself again.

    Raises:
        SourceError: only another mount than ours makes such an upper directory.
    """
    kept = []
    marks: dict[bytes, bytes] = {}
    for name, value in xattrs:
        rest = name.removeprefix(prefix)
        if rest == name:
            kept.append((name, value))
        elif rest.startswith(_ESCAPE):
            kept.append((prefix + rest.removeprefix(_ESCAPE), value))
        else:
            marks[rest] = value
    for name in _NEVER_MADE:
        if name in marks:
            raise SourceError(
                f"{shown(path)} is only half in this upper directory ({name.decode()}): it was "
                "not made by 'dedupfs run'"
            )
    opaque = marks.get(b"opaque", b"")
    found = Marks(opaque == b"y", opaque == b"x", b"whiteout" in marks)
    return found, tuple(sorted(kept))


def is_whiteout(status: stat_result, marks: Marks, directory: Marks) -> bool:
    """Whether an object, in an upper directory with marks of its own, says that a name is gone."""
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    is_file = stat.S_ISREG(status.st_mode) and status.st_size == 0
    return is_file and directory.has_whiteout_files and marks.is_whiteout_file
