"""Owner, mode and attributes of equal files, which hard links to one copy all get from that copy.

Knows no store.
"""

import os
import stat
from collections import Counter
from contextlib import suppress
from pathlib import Path

from dedupfs.checkout.dedupe.below import opened_below
from dedupfs.checkout.dedupe.scan import Group
from dedupfs.model import TreeEntry
from dedupfs.transfer.adoption import adopted_mode
from dedupfs.transfer.metadata import read_xattrs
from dedupfs.transfer.scan import FileKey


def put_usual_first(top_fd: int, group: Group) -> None:
    """Let the copy that stays be one that most of the files look like."""
    looks: dict[FileKey, object] = {}
    for inode in group.inodes:
        with suppress(OSError), opened_below(top_fd, inode.paths[0]) as fd:
            status = inode.status
            mode = adopted_mode(status.st_mode)
            looks[inode.key] = (mode, status.st_uid, status.st_gid, read_xattrs(fd))
    counts = Counter(looks.values())
    group.inodes.sort(key=lambda inode: -counts[looks.get(inode.key)])


def fits(fd: int, entry: TreeEntry, pack: Path) -> bool:
    """Whether the pack's inode can stand for this file; make it so if nobody else uses it."""
    if os.path.samestat(os.fstat(fd), os.stat(pack)):
        return True
    with pack.open("rb") as file:
        if os.fstat(file.fileno()).st_nlink == 1:
            _dress(file.fileno(), entry)
        status = os.fstat(file.fileno())
        shown = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        wanted = (adopted_mode(entry.mode), entry.uid, entry.gid)
        return shown == wanted and read_xattrs(file.fileno()) == entry.xattrs


def _dress(pack_fd: int, entry: TreeEntry) -> None:
    """Give a pack that has no other name the attributes of the file that it will stand for."""
    for name, _ in read_xattrs(pack_fd):
        os.removexattr(pack_fd, name)
    for name, value in entry.xattrs:
        os.setxattr(pack_fd, name, value)
    if os.fstat(pack_fd).st_gid != entry.gid:
        os.chown(pack_fd, -1, entry.gid)
    os.fchmod(pack_fd, adopted_mode(entry.mode))
