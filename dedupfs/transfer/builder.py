"""Entries in walk order -> trees: the directories on the way, their hard links, what must be kept.

Puts tree records; knows no source files. Slots follow name order, as imported trees have them.
"""

import os
import stat
from collections.abc import Iterable, Iterator

import msgspec

from dedupfs.format.tree import entry_references
from dedupfs.model import LINK_MODE, RecordId, TreeEntry
from dedupfs.namespace.trees import directory_entry, put_tree, tree_id_of
from dedupfs.store import Store
from dedupfs.transfer.metadata import Xattrs
from dedupfs.transfer.scan import FileKey
from dedupfs.transfer.sources import (
    NO_LISTING,
    NO_STAMP,
    Stamp,
    encode_row,
    listed,
    listed_directory,
    listing_digest,
)

LINK_ID_BYTES = 8


class _OpenDirectory:
    """A directory whose entries are still coming in."""

    __slots__ = ("entries", "key", "name", "pinned_count", "stamp", "stamps", "status", "xattrs")

    def __init__(
        self, name: bytes, status: os.stat_result, xattrs: Xattrs, key: bytes, stamp: Stamp
    ) -> None:
        self.stamp = stamp
        self.name = name
        self.status = status
        self.xattrs = xattrs
        self.key = key
        self.entries: list[TreeEntry] = []
        self.stamps: list[Stamp] = []
        self.pinned_count = 0

    def add(self, entry: TreeEntry, stamp: Stamp) -> None:
        slot = len(self.entries) + 1
        if entry.slot != slot:
            entry = msgspec.structs.replace(entry, slot=slot)
        self.entries.append(entry)
        self.stamps.append(stamp)

    def listing(self, seed: int) -> bytes:
        """Return the digest that the directory's listing has if nothing of it has changed."""
        items = []
        for entry, stamp in zip(self.entries, self.stamps, strict=True):
            if stamp == NO_STAMP or entry.is_link:
                return NO_LISTING
            if entry.is_directory:
                item = listed_directory(
                    entry.name, entry.mode, entry.mtime_ns, stamp, tree_id_of(entry)
                )
            else:
                item = listed(entry.name, entry.mode, entry.size, entry.mtime_ns, stamp)
            items.append(item)
        return listing_digest(items, seed)


class LinkTable:
    """The hard-linked inodes of the tree: ids, entries, and how many names were seen."""

    def __init__(self, known_ids: Iterable[bytes]) -> None:
        """``known_ids``: those of the last import, which no other inode may get now."""
        self._next_id = int.from_bytes(max(known_ids, default=b"")) + 1
        self._ids: dict[FileKey, bytes] = {}
        self._entries: dict[bytes, TreeEntry] = {}
        self._counts: dict[bytes, int] = {}
        self._unpinned: list[TreeEntry] = []

    def find(self, key: FileKey) -> bytes | None:
        """Return the link id of an inode that was added before."""
        return self._ids.get(key)

    def add(self, key: FileKey, entry: TreeEntry, wanted_id: bytes | None) -> bytes:
        """Add an inode and return its link id: the one it had last time, if nothing has that."""
        if wanted_id is None or wanted_id in self._entries:
            wanted_id = self._next_id.to_bytes(LINK_ID_BYTES)
            self._next_id += 1
        self._ids[key] = wanted_id
        self._entries[wanted_id] = entry
        self._counts[wanted_id] = 0
        self._unpinned.append(entry)
        return wanted_id

    def name_entry(self, name: bytes, link_id: bytes) -> TreeEntry:
        """Return the entry of one more name of the inode."""
        self._counts[link_id] += 1
        return TreeEntry(name, 0, LINK_MODE, content=link_id)

    @property
    def size(self) -> int:
        """Bytes of all inodes, each once."""
        return sum(entry.size for entry in self._entries.values())

    def put(self, store: Store) -> RecordId | None:
        """Put the links tree; None when nothing is hard-linked."""
        entries = [
            msgspec.structs.replace(
                self._entries[link_id], name=link_id, slot=slot, nlink=self._counts[link_id]
            )
            for slot, link_id in enumerate(sorted(self._entries), start=1)
        ]
        return put_tree(store, entries, len(entries) + 1) if entries else None

    def take_unpinned(self) -> list[TreeEntry]:
        """Return the entries that came since the last call."""
        taken, self._unpinned = self._unpinned, []
        return taken


class TreeBuilder:
    """Builds trees bottom up while a walk goes through the source."""

    def __init__(self, store: Store, known_link_ids: Iterable[bytes] = ()) -> None:
        self._store = store
        self._stack: list[_OpenDirectory] = []
        self.links = LinkTable(known_link_ids)
        self.rows: dict[bytes, bytes] = {}
        """The SOURCES rows of the directories that are complete; empty ones have none."""
        self.root: TreeEntry | None = None
        """The top directory's entry, once it is complete."""

    def enter(
        self,
        name: bytes,
        status: os.stat_result,
        xattrs: Xattrs,
        key: bytes,
        stamp: Stamp = NO_STAMP,
    ) -> None:
        """Begin a directory."""
        self._stack.append(_OpenDirectory(name, status, xattrs, key, stamp))

    def add(self, entry: TreeEntry, stamp: Stamp = NO_STAMP) -> None:
        """Add an entry to the innermost directory; names come in order."""
        self._stack[-1].add(entry, stamp)

    def directory_names(self) -> set[bytes]:
        """Return the names of the subdirectories that the innermost directory has by now."""
        return {entry.name for entry in self._stack[-1].entries if entry.is_directory}

    def leave(self) -> None:
        """End the innermost directory: put its tree, and add it to its parent."""
        directory = self._stack.pop()
        entries = directory.entries
        tree_id = put_tree(self._store, entries, len(entries) + 1) if entries else None
        links_id = self.links.put(self._store) if not self._stack else None
        status = directory.status
        entry = directory_entry(
            directory.name,
            0,
            entries,
            tree_id,
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            xattrs=directory.xattrs,
            links_id=links_id,
        )
        if not self._stack:  # hard-linked inodes count once, at the root of their scope
            entry = msgspec.structs.replace(entry, size=entry.size + self.links.size)
        row = b""
        if tree_id is not None:
            listing = directory.listing(self._store.config.hash_seed)
            row = encode_row(tree_id, status.st_dev, directory.stamps, links_id, listing)
        self.rows[directory.key] = row
        if self._stack:
            self.add(entry, directory.stamp)
        else:
            self.root = entry

    def unpinned(self) -> Iterator[RecordId]:
        """Yield what nothing refers to yet and no earlier call yielded, to be kept from gc."""
        for directory in self._stack:
            for entry in directory.entries[directory.pinned_count :]:
                yield from entry_references(entry)
            directory.pinned_count = len(directory.entries)
        for entry in self.links.take_unpinned():
            yield from entry_references(entry)
        if self.root is not None:
            yield from entry_references(self.root)


def object_entry(
    name: bytes,
    status: os.stat_result,
    xattrs: Xattrs,
    content: bytes = b"",
    size: int = 0,
    hole_bytes: int = 0,
) -> TreeEntry:
    """Return the entry of anything but a directory; its slot is given when it is added."""
    is_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    return TreeEntry(
        name=name,
        slot=0,
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=size,
        content=content,
        xattrs=xattrs,
        rdev=status.st_rdev if is_device else 0,
        hole_bytes=hole_bytes,
    )
