"""What a path leads to in a view, which knows inodes alone. The caller has the lock."""

import os
import stat
from pathlib import Path
from typing import NamedTuple

from dedupfs.api.reading import LINKS_FOLLOWED_MAX, AnyPath, Stat, expand, names_of, shown_path
from dedupfs.errors import NotADirectoryNameError, NotFoundError
from dedupfs.model import Attr
from dedupfs.namespace.inodes import ROOT_INODE
from dedupfs.namespace.view import View


class Place(NamedTuple):
    """Where a path leads: a name in a directory, and what is there, if anything is."""

    parent: int
    name: bytes
    attr: Attr | None


def find_place(core: View, path: AnyPath, *, follow: bool) -> Place:
    """Return where ``path`` leads: only its last name may be missing."""
    above = [Place(ROOT_INODE, b"", core.getattr(ROOT_INODE))]
    pending = names_of(path)[::-1]
    links_left = LINKS_FOLLOWED_MAX
    while pending:
        name = pending.pop()
        place = above[-1]
        if place.attr is None:
            raise NotFoundError(f"no {os.fsdecode(place.name)!r} in {shown_path(path)!r}")
        if not stat.S_ISDIR(place.attr.mode):
            before = os.fsdecode(place.name)
            raise NotADirectoryNameError(f"{before!r} in {shown_path(path)!r} is no directory")
        if name == b"..":
            if len(above) == 1:
                raise NotFoundError(f"{shown_path(path)!r} leads outside of the view")
            above.pop()
            continue
        attr: Attr | None
        try:
            attr = core.lookup(place.attr.inode, name)
        except NotFoundError:
            attr = None
        if attr is not None and stat.S_ISLNK(attr.mode) and (pending or follow):
            expand(pending, core.readlink(attr.inode), links_left, path)
            links_left -= 1
            continue
        above.append(Place(place.attr.inode, name, attr))
    return above[-1]


def children(core: View, inode: int) -> list[tuple[bytes, Attr]]:
    """Return what is in a directory."""
    handle = core.opendir(inode)
    try:
        return [(name, attr) for _, name, attr in core.readdir(handle, 0)]
    finally:
        core.releasedir(handle)


def stat_of_attr(attr: Attr) -> Stat:
    """Return what a program is told of an inode."""
    size = 0 if stat.S_ISDIR(attr.mode) else attr.size
    return Stat(
        attr.mode,
        size,
        attr.mtime_ns,
        attr.uid,
        attr.gid,
        attr.nlink,
        attr.atime_ns,
        attr.ctime_ns,
        attr.rdev,
    )


def umask_now() -> int:
    """Return the umask; umask(2) could only tell by changing it under other threads."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022
