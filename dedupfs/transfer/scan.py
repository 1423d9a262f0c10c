"""The first look at a directory to import: how much there is, and which inodes have several names.

Reads names and status only; knows no store.
"""

import os
import stat
from dataclasses import dataclass

from dedupfs.errors import UsageError
from dedupfs.transfer.report import Problems
from dedupfs.transfer.walk import Step, Walk

FileKey = tuple[int, int]
"""Device and inode number: what two hard links have in common."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What the first pass found. ``linked``: inodes with at least two names inside the tree."""

    files: int
    size_bytes: int
    linked: frozenset[FileKey]


def scan(top_fd: int, store_status: os.stat_result, *, one_file_system: bool) -> Scan:
    """Count the files and bytes below ``top_fd`` and find the hard links among them.

    What cannot be read is not reported here: the second pass meets it again.

    Raises:
        UsageError: the store's directory lies in the tree.
    """
    files = size_bytes = 0
    seen: dict[FileKey, int] = {}
    store_key = (store_status.st_dev, store_status.st_ino)
    for step, level, name, status in Walk(
        top_fd, Problems([], None), one_file_system=one_file_system
    ):
        if step is Step.OBJECT:
            files += 1
            if stat.S_ISREG(status.st_mode):
                size_bytes += status.st_size
            if status.st_nlink > 1:
                key = (status.st_dev, status.st_ino)
                seen[key] = seen.get(key, 0) + 1
        elif step is Step.ENTER and (status.st_dev, status.st_ino) == store_key:
            where = os.fsdecode(level.path) or "the directory itself"
            raise UsageError(f"the store lies in the directory to import ({where})")
        del name
    return Scan(files, size_bytes, frozenset(key for key, count in seen.items() if count > 1))
