"""A group of equal files -> one pack that holds their bytes in one piece, held for this process.

An existing pack if there is one, else one of the files is adopted: as a clone, as it is (a link),
or copied. Changes nothing in the directory but the write permissions of a file that is linked.
"""

import enum
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dedupfs.checkout.dedupe.below import opened_below
from dedupfs.checkout.dedupe.modes import ModeNotes
from dedupfs.checkout.dedupe.scan import Group, Inode, Why, is_same_file, why_not
from dedupfs.checkout.dedupe.swap import equal_bytes
from dedupfs.errors import QuotaError, UsageError
from dedupfs.format.keys import decode_pack_key, decode_pack_row, encode_pack_key
from dedupfs.format.tree import entry_references
from dedupfs.model import Extent, PackKind, TreeEntry
from dedupfs.namespace.contents import hole_bytes, store_content
from dedupfs.store import Store, Table
from dedupfs.store.assemble import take_over
from dedupfs.store.limits import StoreLimit
from dedupfs.store.whole import hold, wait_for_punches
from dedupfs.transfer.adoption import (
    Adopted,
    BrokenLeaseError,
    CannotAdoptError,
    OnBytes,
    adopt_clone,
    adopt_copy,
    adopt_link,
    read_content,
)
from dedupfs.transfer.leases import Lease, leased, why_not_leased
from dedupfs.transfer.report import Problems
from dedupfs.transfer.scan import FileKey


class Link(enum.StrEnum):
    """What a duplicate becomes."""

    AUTO = "auto"
    REFLINK = "reflink"
    HARDLINK = "hardlink"
    SYMLINK = "symlink"


@dataclass(frozen=True, slots=True)
class Target:
    """The pack of a group, and the content of a tree entry that has its bytes.

    ``inode``: the file that it was made of and is, if it was linked.
    """

    pack: int
    content: bytes
    hole_bytes: int
    inode: Inode | None = None


@dataclass(frozen=True, slots=True)
class WholeFiles:
    """The verbatim packs of a store: their numbers by length, and their inodes."""

    by_size: dict[int, list[int]]
    paths: dict[int, list[Path]]
    inodes: dict[FileKey, int]


def whole_files(store: Store) -> WholeFiles:
    """Look at all verbatim packs; whether one is whole shows when its bytes are compared."""
    by_size: dict[int, list[int]] = defaultdict(list)
    paths: dict[int, list[Path]] = defaultdict(list)
    inodes: dict[FileKey, int] = {}
    with store.reading() as txn:
        for key, row in txn.scan(Table.PACKS):
            pack_row = decode_pack_row(row)
            if pack_row.kind is PackKind.VERBATIM:
                by_size[pack_row.committed_bytes].append(decode_pack_key(key))
    for size, packs in by_size.items():
        for pack in packs:
            path = store.layout.pack(pack, PackKind.VERBATIM)
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue
            paths[size].append(path)
            inodes[status.st_dev, status.st_ino] = pack
    return WholeFiles(dict(by_size), dict(paths), inodes)


class Taker:
    """Finds or makes the packs of groups; ``owner`` holds them, and their content, from then on."""

    def __init__(
        self,
        store: Store,
        owner: bytes,
        top_fd: int,
        link: Link,
        known: WholeFiles,
        notes: ModeNotes,
        problems: Problems,
        on_bytes: OnBytes | None,
    ) -> None:
        self.link = link
        self._store = store
        self._owner = owner
        self._top_fd = top_fd
        self._known = known
        self._notes = notes
        self._problems = problems
        self._on_bytes = on_bytes
        self._limit = StoreLimit(store)
        self._limit.reload()

    def take(self, group: Group) -> Target | None:
        """Return the group's pack; None when none of its files can be had.

        That is also when the store's limit leaves no room for it.
        """
        for inode in group.inodes:
            try:
                with opened_below(self._top_fd, inode.paths[0]) as fd:
                    target = self._existing(fd, inode)
                    if target is None and len(group.inodes) > 1:
                        self._limit.require(inode.disk_bytes)
                        target = self._made(fd, inode)
            except QuotaError as exc:
                self._problems.add(inode.paths[0], f"stays as it is: {exc}")
                return None
            except OSError as exc:
                self._problems.add_os_error(inode.paths[0], "stays as it is", exc)
                continue
            if target is not None:
                return target
        return None

    def _existing(self, fd: int, inode: Inode) -> Target | None:
        """Return a pack that has the file's bytes, and will keep them."""
        for pack in self._known.by_size.get(inode.size, ()):
            with self._trying(pack) as pack_fd:
                if pack_fd < 0 or not equal_bytes(fd, pack_fd, inode.size):
                    continue
                extents = read_content(self._store, pack_fd).extents
                content = self._pin(extents, pack)
                return Target(pack, content, hole_bytes(extents))
        return None

    def _pin(self, extents: list[Extent], pack: int) -> bytes:
        """Commit a content, held with its pack, and return it."""
        content = store_content(self._store, extents)
        entry = TreeEntry(b"", 0, stat.S_IFREG, content=content)
        with self._store.transaction() as txn:
            hold(self._store, txn, self._owner, pack)
            for record_id in set(entry_references(entry)):
                if txn.get(Table.PINS, self._owner + record_id) is None:
                    txn.pin(self._owner, record_id)
        return content

    @contextmanager
    def _trying(self, pack: int) -> Iterator[int]:
        """Hold a pack, then open it: what is found out then stays true. -1: it is gone."""
        store = self._store
        with store.reading() as txn:
            is_there = txn.get(Table.PACKS, encode_pack_key(pack)) is not None
        if not is_there:
            yield -1
            return
        with store.transaction() as changes:
            hold(store, changes, self._owner, pack)
        wait_for_punches(store)
        fd = os.open(store.layout.pack(pack, PackKind.VERBATIM), os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def _made(self, fd: int, inode: Inode) -> Target | None:
        try:
            return self._adopted(fd, inode)
        except BrokenLeaseError:
            self._problems.add(inode.paths[0], Why.CHANGED)
            return None

    def _adopted(self, fd: int, inode: Inode) -> Target | None:
        if self.link in (Link.AUTO, Link.REFLINK):
            try:
                adopted = adopt_clone(self._store, fd, self._on_bytes)
            except CannotAdoptError:
                if self.link is Link.REFLINK:
                    raise UsageError("the file system of the store cannot share blocks") from None
                self.link = Link.HARDLINK
            else:
                self.link = Link.REFLINK
                return self._kept(adopted, fd, inode)
        why = why_not(fd, inode)
        if why is not None:
            self._problems.add(inode.paths[0], why)
            return None
        if self.link is Link.SYMLINK and os.fstat(fd).st_dev != os.stat(self._store.path).st_dev:
            return self._kept(adopt_copy(self._store, fd, self._on_bytes), fd, inode)
        try:
            with leased(fd) as lease:
                self._notes.add(inode.paths[0], inode.status)
                adopted = adopt_link(self._store, fd, lease, self._on_bytes)
                if not lease.holds:  # making it durable may take long
                    self._store.drop_pending()
                    os.fchmod(fd, stat.S_IMODE(inode.status.st_mode))
                    raise BrokenLeaseError(f"{inode.paths[0]!r}: somebody wants to write to it")
                return self._kept(adopted, fd, inode, lease)
        except CannotAdoptError:
            self.link = Link.SYMLINK if self.link is Link.HARDLINK else self.link
        except BlockingIOError as exc:
            self._problems.add(inode.paths[0], why_not_leased(exc))
            return None
        return self._kept(adopt_copy(self._store, fd, self._on_bytes), fd, inode)

    def _kept(
        self, adopted: Adopted, fd: int, inode: Inode, lease: Lease | None = None
    ) -> Target | None:
        """Commit the pack and hold it, then let it be the one place of its chunks.

        Unless somebody is about to write to it: what the store has elsewhere must not go for that.
        """
        content = self._pin(adopted.extents, adopted.pack)
        status = os.stat(self._store.layout.pack(adopted.pack, PackKind.VERBATIM))
        is_linked = os.path.samestat(status, os.fstat(fd))
        if lease is None or lease.holds:
            take_over(self._store, adopted.pack, _first_places(adopted.extents))
        if not is_linked and not is_same_file(inode.status, os.fstat(fd)):
            self._problems.add(inode.paths[0], Why.CHANGED)
            return None
        holes = hole_bytes(adopted.extents)
        return Target(adopted.pack, content, holes, inode if is_linked else None)


def _first_places(extents: list[Extent]) -> list[tuple[int, Extent]]:
    places: dict[bytes, tuple[int, Extent]] = {}
    file_offset = 0
    for extent in extents:
        if any(extent.chunk_id):
            places.setdefault(extent.chunk_id, (file_offset, extent))
        file_offset += extent.length
    return list(places.values())
