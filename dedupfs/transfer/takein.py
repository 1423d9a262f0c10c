"""A tree and the upper directory of an overlay over it -> the tree that the overlay showed.

Costs what lies in the upper directory and the directories that it changes; below an unchanged one
nothing is read. Hard links of the tree are counted, not looked for, unless a directory that goes
has some. Everything or nothing: what cannot be read exactly is an error. Source:
docs/architecture.md, "Run".
"""

import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from dedupfs.errors import MissingRecordError, SourceError, StoreError
from dedupfs.format.tree import entry_references
from dedupfs.model import FILE_BYTES_MAX, HOLE, LINK_MODE, Extent, RecordId, SnapshotInfo, TreeEntry
from dedupfs.namespace.contents import hole_bytes, store_content, total_bytes
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import (
    TreeReader,
    directory_entry,
    links_id_of,
    put_tree,
    tree_id_of,
)
from dedupfs.store import Store
from dedupfs.store.limits import StoreLimit
from dedupfs.transfer.builder import LINK_ID_BYTES, object_entry
from dedupfs.transfer.filedata import FileStorer
from dedupfs.transfer.metadata import Xattrs, object_at, open_source, read_xattrs
from dedupfs.transfer.report import Problem, Problems, shown
from dedupfs.transfer.scan import FileKey
from dedupfs.transfer.upper import Marks, is_whiteout, split_xattrs
from dedupfs.transfer.walk import Level, Step, Walk

ATTEMPTS_MAX = 3
PENDING_BYTES_MAX = 1 << 30
"""After this many bytes what was stored so far is committed, held by pins alone."""


@dataclass(frozen=True, slots=True)
class Upper:
    """An upper directory, and what is needed to understand it."""

    fd: int
    prefix: bytes
    """Of overlayfs's own attributes, ``upper.ROOTS_PREFIX`` or ``upper.USERS_PREFIX``."""
    top: tuple[int, int, int]
    """Mode, owner and group that the directory was given for those of the tree's root."""
    top_xattrs: Xattrs
    """The same of its attributes."""


def take_in(
    store: Store,
    base: TreeEntry,
    upper: Upper,
    name: str,
    *,
    tags: Mapping[str, str],
    source: str,
) -> SnapshotInfo:
    """Make the snapshot ``name`` of ``base`` with what was changed above it.

    Raises:
        UsageError, ExistsError: the name. SourceError: something in the upper directory cannot be
            read, or is not what a mount of ours leaves. QuotaError: the store is at its limit.
        StoreError: it failed. No snapshot was made, and the upper directory is as it was.
    """
    catalog = SnapshotCatalog(store)
    catalog.require_free(name)
    try:
        _pin(store, entry_references(base))
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                root = _TakeIn(store, base, upper).run()
                _pin(store, entry_references(root))
                return catalog.add(name, root, tags=tags, source=source)
            except BaseException as exc:
                store.drop_pending()  # what was put is used again, or nobody's
                if not isinstance(exc, MissingRecordError) or attempt == ATTEMPTS_MAX:
                    raise
    finally:
        with suppress(StoreError), store.transaction() as txn:
            txn.release_pins(store.owner)
    raise AssertionError("the last attempt returns or raises")


def _pin(store: Store, record_ids: Sequence[RecordId]) -> None:
    with store.transaction() as txn:
        for record_id in record_ids:
            if record_id != HOLE:
                txn.pin(store.owner, record_id)


def _refuse(problem: Problem) -> None:
    raise SourceError(f"cannot take in {problem}")


@dataclass(slots=True)
class _Merging:
    """A directory of the upper one that the walk is in."""

    status: os.stat_result
    xattrs: Xattrs
    marks: Marks
    lower: TreeEntry | None
    """The tree's directory that shines through, if one does."""
    next_slot: int = 1
    entries: dict[bytes, TreeEntry] = field(default_factory=dict)


class _Links:
    """The hard-linked inodes of the result: the tree's, by what becomes of their names, and new."""

    def __init__(self, reader: TreeReader, base: TreeEntry) -> None:
        self._reader = reader
        links_id = links_id_of(base)
        self._entries = {entry.name: entry for entry in reader.entries(links_id)}
        tree = reader.get(links_id) if links_id is not None else None
        self._next_slot = 1 if tree is None else tree.next_slot
        self._next_id = int.from_bytes(max(self._entries, default=b"")) + 1
        self._ids: dict[FileKey, bytes] = {}

    def find(self, key: FileKey) -> bytes | None:
        """Return the link id of an inode of the upper directory that was met before."""
        return self._ids.get(key)

    def add(self, key: FileKey, entry: TreeEntry) -> bytes:
        """Add an inode of the upper directory, which has no name yet."""
        link_id = self._next_id.to_bytes(LINK_ID_BYTES)
        self._next_id += 1
        self._ids[key] = link_id
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        self._entries[link_id] = msgspec.structs.replace(entry, name=link_id, slot=slot, nlink=0)
        return link_id

    def count(self, link_id: bytes, change: int) -> None:
        """Count names that came or went; an inode without any is none."""
        entry = self._entries.get(link_id)
        if entry is None:
            raise MissingRecordError(f"hard link {link_id.hex()} has no inode")
        nlink = entry.nlink + change
        if nlink:
            self._entries[link_id] = msgspec.structs.replace(entry, nlink=nlink)
        else:
            del self._entries[link_id]

    def drop(self, entry: TreeEntry) -> None:
        """Count what goes with an entry of the tree."""
        if entry.is_link:
            self.count(entry.content, -1)
        pending = [entry] if entry.is_directory and entry.has_links else []
        while pending:
            for child in self._reader.entries(tree_id_of(pending.pop())):
                if child.is_link:
                    self.count(child.content, -1)
                elif child.is_directory and child.has_links:
                    pending.append(child)

    def put(self, store: Store) -> tuple[RecordId | None, int]:
        """Put the links tree; return it (None when there are no links) and the inodes' bytes."""
        entries = [self._entries[link_id] for link_id in sorted(self._entries)]
        size = sum(entry.size for entry in entries)
        return (put_tree(store, entries, self._next_slot) if entries else None), size


class _TakeIn:
    """One attempt."""

    def __init__(self, store: Store, base: TreeEntry, upper: Upper) -> None:
        self._store = store
        self._base = base
        self._upper = upper
        self._reader = TreeReader(store)
        self._links = _Links(self._reader, base)
        # A process that has entered a process namespace can have no thread: unshare(2).
        self._storer = FileStorer(store, self._block_stored, threads=False)
        self._limit = StoreLimit(store)
        self._limit.reload()
        self._stack: list[_Merging] = []
        self._pending_bytes = 0
        self._pinned_extents = 0
        self._unpinned: list[RecordId] = []

    def run(self) -> TreeEntry:
        """Go through the upper directory and put everything; return the new root."""
        root: TreeEntry | None = None
        try:
            for step, level, name, status in Walk(self._upper.fd, Problems([], _refuse)):
                if self._pending_bytes >= PENDING_BYTES_MAX:
                    self._pin_pending()
                if step is Step.ENTER:
                    self._enter(level, name, status)
                elif step is Step.LEAVE:
                    root = self._leave(name)
                else:
                    self._object(level, name)
        except OSError as exc:
            raise SourceError(f"cannot read the upper directory: {exc}") from exc
        finally:
            self._storer.close()
        assert root is not None
        return root

    def _enter(self, level: Level, name: bytes, status: os.stat_result) -> None:
        marks, xattrs = split_xattrs(read_xattrs(level.fd), self._upper.prefix, level.path)
        if not self._stack:
            below: TreeEntry | None = self._base
        else:
            below = self._stack[-1].entries.get(name)
        if below is not None and (marks.is_opaque or not below.is_directory):
            self._links.drop(below)
            below = None
        directory = _Merging(status, xattrs, marks, below)
        tree_id = tree_id_of(below) if below is not None else None
        if tree_id is not None:
            directory.next_slot = self._reader.get(tree_id).next_slot
            directory.entries = {entry.name: entry for entry in self._reader.entries(tree_id)}
        self._stack.append(directory)

    def _leave(self, name: bytes) -> TreeEntry:
        """Put the innermost directory, and let the one above it have its entry."""
        directory = self._stack.pop()
        entries = [directory.entries[key] for key in sorted(directory.entries)]
        links_id, linked_bytes = (None, 0) if self._stack else self._links.put(self._store)
        status, xattrs = directory.status, directory.xattrs
        mode, uid, gid = status.st_mode, status.st_uid, status.st_gid
        if not self._stack:
            if (mode, uid, gid) == self._upper.top:
                mode, uid, gid = self._base.mode, self._base.uid, self._base.gid
            if xattrs == self._upper.top_xattrs:
                xattrs = self._base.xattrs
        entry = directory_entry(
            name,
            0,
            entries,
            put_tree(self._store, entries, directory.next_slot) if entries else None,
            mode=mode,
            uid=uid,
            gid=gid,
            mtime_ns=status.st_mtime_ns,
            xattrs=xattrs,
            links_id=links_id,
        )
        entry = msgspec.structs.replace(entry, size=entry.size + linked_bytes)
        if directory.lower is not None:
            entry = _as_it_was(directory.lower, entry)
        if self._stack:
            self._add(entry)
        return entry

    def _object(self, level: Level, name: bytes) -> None:
        """Take in what is no directory."""
        directory = self._stack[-1]
        with object_at(level.fd, name) as (fd, path):
            status = os.fstat(fd)
            key = (status.st_dev, status.st_ino)
            link_id = self._links.find(key) if status.st_nlink > 1 else None
            entry = None
            if link_id is None:
                where = level.child_path(name)
                marks, xattrs = split_xattrs(read_xattrs(path), self._upper.prefix, where)
                if is_whiteout(status, marks, directory.marks):
                    gone = directory.entries.pop(name, None)
                    if gone is not None:
                        self._links.drop(gone)
                    return
                if stat.S_ISREG(status.st_mode):
                    entry = self._stored(path, name, where, xattrs)
                else:
                    target = os.readlink(b"", dir_fd=fd) if stat.S_ISLNK(status.st_mode) else b""
                    entry = object_entry(name, status, xattrs, target, len(target))
        if status.st_nlink > 1:
            if link_id is None:
                assert entry is not None
                self._unpinned += entry_references(entry)
                link_id = self._links.add(key, entry)
            self._links.count(link_id, 1)
            entry = TreeEntry(name, 0, LINK_MODE, content=link_id)
        assert entry is not None
        self._replace(entry)

    def _stored(self, path: bytes, name: bytes, where: bytes, xattrs: Xattrs) -> TreeEntry:
        """Read and store a regular file."""
        self._pinned_extents = 0
        file = open_source(path)
        try:
            status = os.fstat(file)
            if status.st_size > FILE_BYTES_MAX:
                raise SourceError(f"cannot take in {shown(where)}: it is too large")
            stored = self._storer.put(file, status)
        finally:
            os.close(file)
        if not stored.is_stable:
            raise SourceError(f"cannot take in {shown(where)}: it is being written")
        return object_entry(
            name,
            stored.status,
            xattrs,
            store_content(self._store, stored.extents),
            total_bytes(stored.extents),
            hole_bytes(stored.extents),
        )

    def _replace(self, entry: TreeEntry) -> None:
        """Let the innermost directory have an object in the place of what it has there."""
        before = self._stack[-1].entries.get(entry.name)
        if before is not None:
            self._links.drop(before)
            entry = _as_it_was(before, entry)
        self._add(entry)

    def _add(self, entry: TreeEntry) -> None:
        directory = self._stack[-1]
        before = directory.entries.get(entry.name)
        if before is not None and stat.S_IFMT(before.mode) == stat.S_IFMT(entry.mode):
            slot = before.slot
        else:
            slot, directory.next_slot = directory.next_slot, directory.next_slot + 1
        if entry.slot != slot:
            entry = msgspec.structs.replace(entry, slot=slot)
        directory.entries[entry.name] = entry
        self._unpinned += entry_references(entry)

    def _block_stored(self, length: int, extents: Sequence[Extent]) -> None:
        self._pending_bytes += length
        self._limit.added(length)
        if extents and self._pending_bytes >= PENDING_BYTES_MAX:
            loose = [e.chunk_id for e in extents[self._pinned_extents :] if e.chunk_id != HOLE]
            self._pinned_extents = len(extents)
            self._unpinned += loose
            self._pin_pending()

    def _pin_pending(self) -> None:
        """Commit what was put so far, so that memory stays bounded; pins keep it from gc."""
        unpinned, self._unpinned = self._unpinned, []
        _pin(self._store, unpinned)
        self._pending_bytes = 0


def _as_it_was(before: TreeEntry, after: TreeEntry) -> TreeEntry:
    """Return the tree's own entry of what was copied up and is the same; it has more times."""
    same = msgspec.structs.replace(
        after,
        name=before.name,
        slot=before.slot,
        ctime_ns=before.ctime_ns,
        atime_ns=before.atime_ns,
    )
    return before if same == before else after
