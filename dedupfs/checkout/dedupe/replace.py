"""Replaces files by links to their packs, each compared with its pack byte by byte first.

A file that shares blocks with the pack stays what it is; a hard or symbolic link takes its name.
Whatever speaks against a file is told, and it stays as it is. Knows no index.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dedupfs.checkout.dedupe.below import opened_below, parent_of
from dedupfs.checkout.dedupe.scan import Inode, Why, is_same_file, why_not
from dedupfs.checkout.dedupe.snapshot import Taken
from dedupfs.checkout.dedupe.swap import Make, Swaps, equal_bytes, temporary_name
from dedupfs.checkout.dedupe.take import Link
from dedupfs.errors import CorruptError
from dedupfs.transfer.extents import share
from dedupfs.transfer.leases import Lease, leased, why_not_leased
from dedupfs.transfer.report import Problems


class Replacer:
    """Replaces files of one directory, in one way."""

    def __init__(self, top_fd: int, link: Link, problems: Problems) -> None:
        self._top_fd = top_fd
        self._link = link
        self._problems = problems

    def replace(self, inode: Inode, names: Sequence[Taken], pack_path: Path) -> bool:
        """Replace a file under all its names; say whether it is done, or was done before."""
        first = names[0].path
        try:
            with opened_below(self._top_fd, first) as fd, _opened_pack(pack_path) as pack_fd:
                if os.path.samestat(os.fstat(fd), os.fstat(pack_fd)):
                    if self._link is Link.HARDLINK:
                        return True
                    # The pack is this inode, which is to have another name in its place.
                    return self._swap(inode, names, pack_path, fd, None)
                if self._link is Link.REFLINK:
                    return self._share(inode, first, fd, pack_fd)
                return self._swap_equal(inode, names, pack_path, fd, pack_fd)
        except BlockingIOError as exc:
            self._problems.add(first, why_not_leased(exc))
        except OSError as exc:
            self._problems.add_os_error(first, "stays as it is", exc)
        return False

    def _share(self, inode: Inode, path: bytes, fd: int, pack_fd: int) -> bool:
        """Let the kernel compare and share: it keeps everybody else away meanwhile."""
        if os.fstat(fd).st_size != inode.size or not share(pack_fd, fd, inode.size):
            self._problems.add(path, Why.CHANGED)
            return False
        return True

    def _swap_equal(
        self, inode: Inode, names: Sequence[Taken], pack_path: Path, fd: int, pack_fd: int
    ) -> bool:
        why = why_not(fd, inode)
        if why is None:
            with leased(fd) as lease:
                if is_same_file(inode.status, os.fstat(fd)) and equal_bytes(
                    fd, pack_fd, inode.size
                ):
                    return self._swap(inode, names, pack_path, fd, lease)
                why = Why.CHANGED
        self._problems.add(names[0].path, why)
        return False

    def _swap(
        self,
        inode: Inode,
        names: Sequence[Taken],
        pack_path: Path,
        fd: int,
        lease: Lease | None,
    ) -> bool:
        with ExitStack() as stack:
            swaps = Swaps(fd, lease)
            stack.callback(swaps.close)
            for one in names:
                with parent_of(self._top_fd, one.path) as (directory_fd, name):
                    temporary = temporary_name(one.pack)
                    if not swaps.add(directory_fd, name, temporary, self._maker(one, pack_path)):
                        self._problems.add(one.path, Why.CHANGED)
                        return False
            if not swaps.settle():
                self._problems.add(inode.paths[0], Why.CHANGED)
                return False
        return True

    def _maker(self, one: Taken, pack_path: Path) -> Make:
        def link(directory_fd: int, name: bytes) -> None:
            os.link(pack_path, name, dst_dir_fd=directory_fd)

        def symlink(directory_fd: int, name: bytes) -> None:
            os.symlink(os.fsencode(pack_path), name, dir_fd=directory_fd)
            entry = one.entry
            os.utime(
                name,
                ns=(entry.mtime_ns, entry.mtime_ns),
                dir_fd=directory_fd,
                follow_symlinks=False,
            )

        return link if self._link is Link.HARDLINK else symlink


@contextmanager
def _opened_pack(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise CorruptError(f"cannot open {path}: {exc.strerror}") from exc
    try:
        yield fd
    finally:
        os.close(fd)
