"""What the last import of a directory knew: which files need not be read again.

One row per directory in table SOURCES. Key: XXH3-128 of the absolute source path, then for each
step down of the key above and the name. Value: the directory's tree id in the snapshot made then,
its device, a digest of its listing, and for each of the tree's entries the inode number and ctime
of the object it was made from (zeros: do not trust it). The row of the top has the links tree's id
too. Rows hold no references: a row counts only when the tree it names is met while descending from
a pinned root.

The *listing* of a directory is all that stat(2) tells of what is in it, and the tree ids of its
subdirectories. When it has the digest that the row has, the tree is what the directory still is,
and so are all trees below if the same is true of them: nothing has to be decoded to know that. A
directory with anything that is not to be trusted, or with hard links, has no digest.
Source: docs/format.md, "Index".
"""

import os
import struct
from collections.abc import Iterator

import xxhash

from dedupfs.model import HOLE, ID_BYTES, RecordId, TreeEntry
from dedupfs.namespace.trees import TreeReader, tree_id_of
from dedupfs.store import Store, Table

Stamp = tuple[int, int]
"""Inode number and ctime in ns, modulo 2 ** 64: file systems without a ctime tell any mtime."""
NO_STAMP: Stamp = (0, 0)
_HEAD = struct.Struct("<16s16sQ16s")
_STAMP = struct.Struct("<QQ")
_ITEM = struct.Struct("<xQQQQI")
_U64 = (1 << 64) - 1
NO_LISTING = bytes(16)


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what tells whether an object was changed."""
    return status.st_ino, status.st_ctime_ns & _U64


def top_key(directory: bytes) -> bytes:
    """Return the key of a source directory, given by its absolute path."""
    return xxhash.xxh3_128_digest(directory)


def sibling_key(directory: bytes) -> bytes:
    """Return the key of the row that tells which directory beside this one was imported last."""
    return xxhash.xxh3_128_digest(os.path.dirname(directory) + b"\0")


def child_key(key: bytes, name: bytes) -> bytes:
    """Return the key of subdirectory ``name`` of the directory with ``key``."""
    return xxhash.xxh3_128_digest(key + name)


def listed(name: bytes, mode: int, size: int, mtime_ns: int, stamp: Stamp) -> bytes:
    """Return the item of a listing for anything but a directory: its name, a zero byte, numbers."""
    return name + _ITEM.pack(mtime_ns & _U64, size, stamp[0], stamp[1], mode)


def listed_directory(
    name: bytes, mode: int, mtime_ns: int, stamp: Stamp, tree_id: RecordId | None
) -> bytes:
    """Return the item of a listing for a subdirectory, with the tree that it was made into."""
    return listed(name, mode, 0, mtime_ns, stamp) + (tree_id or HOLE)


def listing_digest(items: list[bytes], seed: int) -> bytes:
    """Return the digest of a listing; a secret seed lets nobody craft two of the same."""
    return xxhash.xxh3_128_digest(b"".join(sorted(items)), seed)


def encode_row(
    tree_id: RecordId,
    device: int,
    stamps: list[Stamp],
    links_id: RecordId | None = None,
    listing: bytes = NO_LISTING,
) -> bytes:
    """Encode a SOURCES row."""
    head = _HEAD.pack(tree_id, links_id or HOLE, device, listing)
    return head + b"".join([_STAMP.pack(inode, ctime_ns) for inode, ctime_ns in stamps])


class SourceRow:
    """A decoded SOURCES row; its stamps are decoded when asked for.

    A row of an earlier dedupfs reads as one of other entries than its tree has.
    """

    __slots__ = ("_row", "device", "links_id", "listing", "tree_id")

    def __init__(self, row: bytes) -> None:
        tree_id, links_id, device, listing = _HEAD.unpack_from(row.ljust(_HEAD.size))
        self.device: int = device
        self.listing: bytes = listing
        self.tree_id = RecordId(tree_id)
        self.links_id = RecordId(links_id) if links_id != HOLE else None
        self._row = row

    @property
    def stamps(self) -> list[Stamp]:
        """One for each entry of the tree."""
        return list(_STAMP.iter_unpack(memoryview(self._row)[_HEAD.size :]))


KnownEntries = dict[bytes, tuple[TreeEntry, Stamp]]


class KnownDirectory:
    """A directory as the last import saw it: its entries, and the stamps of what was read."""

    __slots__ = ("device", "entries", "key", "known_key")

    def __init__(
        self,
        key: bytes,
        known_key: bytes,
        device: int = 0,
        entries: KnownEntries | None = None,
    ) -> None:
        """``key``: of its own row. ``known_key``: of the row that it is compared with."""
        self.key = key
        self.known_key = known_key
        self.device = device
        self.entries = entries or {}

    def find(self, name: bytes) -> TreeEntry | None:
        """Return the entry that ``name`` had."""
        found = self.entries.get(name)
        return found[0] if found is not None else None

    def unchanged(self, name: bytes, status: os.stat_result) -> TreeEntry | None:
        """Return the entry that ``name`` had, if it is the same inode, not changed since."""
        found = self.entries.get(name)
        if found is None or status.st_dev != self.device:
            return None
        entry, stamp = found
        return entry if stamp == stamp_of(status) else None


class KnownListings:
    """The rows of the last import of one source directory, as a quick look at it needs them."""

    def __init__(self, store: Store, directory: bytes) -> None:
        self._store = store
        self.top_key = top_key(directory)

    def row(self, key: bytes) -> SourceRow | None:
        """Return the row of the directory with ``key``."""
        with self._store.reading() as txn:
            row = txn.get(Table.SOURCES, key)
        return SourceRow(row) if row is not None else None

    def digest(self, items: list[bytes]) -> bytes:
        """Return the digest of a listing."""
        return listing_digest(items, self._store.config.hash_seed)


class KnownSources:
    """The last import of one source directory, or of its sibling, or nothing."""

    def __init__(
        self,
        store: Store,
        reader: TreeReader,
        directory: bytes,
        known_key: bytes,
        top: SourceRow | None,
    ) -> None:
        """``known_key`` and ``top``: the key and the row of what ``directory`` is compared with."""
        self._store = store
        self._reader = reader
        self._keys = top_key(directory), known_key
        self._top = top
        self.links_id = top.links_id if top is not None else None

    def top(self) -> KnownDirectory:
        """Return what is known of the source directory itself."""
        return self._load(*self._keys, self._top.tree_id if self._top else None)

    def child(self, parent: KnownDirectory, name: bytes) -> KnownDirectory:
        """Return what is known of a subdirectory."""
        entry = parent.find(name)
        tree_id = tree_id_of(entry) if entry is not None and entry.is_directory else None
        keys = child_key(parent.key, name), child_key(parent.known_key, name)
        return self._load(*keys, tree_id)

    def _load(self, key: bytes, known_key: bytes, tree_id: RecordId | None) -> KnownDirectory:
        if tree_id is None:
            return KnownDirectory(key, known_key)
        with self._store.reading() as txn:
            row = txn.get(Table.SOURCES, known_key)
        if row is None or row[:ID_BYTES] != tree_id:
            return KnownDirectory(key, known_key)
        known = SourceRow(row)
        entries = list(self._reader.entries(tree_id))
        if len(entries) != len(known.stamps):
            return KnownDirectory(key, known_key)
        pairs = zip(entries, known.stamps, strict=True)
        stamped = {entry.name: (entry, stamp) for entry, stamp in pairs}
        return KnownDirectory(key, known_key, known.device, stamped)

    def inode(self, entry: TreeEntry) -> TreeEntry | None:
        """Return the inode's entry of a hard link of the last import."""
        return self._reader.find(self.links_id, entry.content)

    def link_ids(self) -> Iterator[bytes]:
        """Yield the link ids of the last import, in order."""
        for entry in self._reader.entries(self.links_id):
            yield entry.name

    def keys_below(self, key: bytes, entry: TreeEntry) -> Iterator[bytes]:
        """Yield the keys of a directory of the last import and of all directories below it."""
        waiting = [(key, entry)]
        while waiting:
            key, entry = waiting.pop()
            yield key
            waiting += [
                (child_key(key, child.name), child)
                for child in self._reader.entries(tree_id_of(entry))
                if child.is_directory
            ]
