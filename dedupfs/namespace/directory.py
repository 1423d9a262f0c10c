"""One directory of a view in memory: an immutable tree under what has changed since.

Knows its entries, not what they mean to files or to the kernel. A directory object is made when
the directory is first looked into and can be made again from its number at any time.
"""

from collections.abc import Iterator

import msgspec

from dedupfs.model import SnapshotInfo, TreeEntry
from dedupfs.namespace.inodes import LINKS_SLOT, directory_inode
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader, links_id_of, tree_id_of

LINKS_NAME = b"/links"
"""Name of a scope's hidden directory of hard-linked inodes; no real name has a slash."""

CATALOG_SLOTS_START = 1 << 23
"""In a catalogue's root, slots below are snapshots' sequence numbers, the others the view's own."""


class Directory:
    """``entry`` holds the attributes (its content is the base tree); ``changes`` lie over the tree.

    A name in ``changes`` has that entry, or is removed when the value is None. ``parent`` is None
    for the view's root. ``scope`` is the directory inside which hard links live: the view's root
    or, in a catalogue, a snapshot's directory.
    """

    def __init__(
        self,
        trees: TreeReader,
        number: int,
        entry: TreeEntry,
        parent: "Directory | None",
        places: dict[int, int],
        *,
        is_scope: bool = False,
    ) -> None:
        self._trees = trees
        self.number = number
        self.inode = directory_inode(number)
        self.entry = entry
        self.parent = parent
        self.places = places
        self.is_scope = is_scope or parent is None
        self.changes: dict[bytes, TreeEntry | None] = {}
        self._changed_slots: dict[int, bytes] = {}
        self.dirty = False
        self.removed = False
        self.next_slot = self._slots_from(entry)

    @property
    def scope(self) -> "Directory":
        """The directory that hard links in here cannot leave."""
        directory = self
        while not directory.is_scope and directory.parent is not None:
            directory = directory.parent
        return directory

    @property
    def nlink(self) -> int:
        """2 and one for each subdirectory."""
        return self.entry.nlink

    @property
    def is_links(self) -> bool:
        """Whether this is a scope's hidden directory of hard-linked inodes."""
        return self.entry.name == LINKS_NAME

    def find(self, name: bytes) -> TreeEntry | None:
        """Return the entry called ``name`` as it is now, or None."""
        entry = self.changes.get(name)
        if entry is not None or name in self.changes or not self.entry.content:
            return entry
        return self._trees.find(tree_id_of(self.entry), name)

    def by_slot(self, slot: int) -> TreeEntry | None:
        """Return the entry in ``slot`` as it is now, or None."""
        name = self._changed_slots.get(slot)
        if name is not None:
            entry = self.changes.get(name)
            if entry is not None and entry.slot == slot:
                return entry
        if not self.entry.content:
            return None
        entry = self._trees.by_slot(tree_id_of(self.entry), slot)
        if entry is None or entry.name in self.changes:
            return None
        return entry

    def entries(self) -> list[TreeEntry]:
        """Return all entries as they are now, sorted by name."""
        base = self._trees.entries(tree_id_of(self.entry))
        if not self.changes:
            return list(base)
        kept = [entry for entry in base if entry.name not in self.changes]
        kept += [entry for entry in self.changes.values() if entry is not None]
        kept.sort(key=lambda entry: entry.name)
        return kept

    def is_empty(self) -> bool:
        """Whether there are no entries."""
        if any(entry is not None for entry in self.changes.values()):
            return False
        base = self._trees.entries(tree_id_of(self.entry))
        return all(entry.name in self.changes for entry in base)

    def put(self, entry: TreeEntry) -> None:
        """Make ``entry`` what its name stands for."""
        self.changes[entry.name] = entry
        self._changed_slots[entry.slot] = entry.name
        if entry.slot >= self.next_slot:
            self.next_slot = entry.slot + 1
        self.dirty = True

    def remove(self, name: bytes, hide: int = 0) -> None:
        """Make ``name`` stand for nothing; ``hide`` is for a catalogue's root alone."""
        del hide
        self.changes[name] = None
        self.dirty = True

    def sequence_under(self, name: bytes) -> int:
        """Return what ``remove`` has to hide: 0 except in a catalogue's root."""
        del name
        return 0

    def new_slot(self) -> int:
        """Return a slot that was never used in this directory."""
        if self.next_slot == LINKS_SLOT:
            self.next_slot += 1
        slot = self.next_slot
        self.next_slot += 1
        return slot

    def set_attributes(self, entry: TreeEntry) -> None:
        """Take over the attributes of ``entry``; name, slot and content stay."""
        self.entry = msgspec.structs.replace(
            entry, name=self.entry.name, slot=self.entry.slot, content=self.entry.content
        )
        self.dirty = True

    def touch(self, time_ns: int) -> None:
        """Note that an entry came or went."""
        self.entry = msgspec.structs.replace(
            self.entry, atime_ns=self.entry.kept_atime_ns, mtime_ns=time_ns, ctime_ns=0
        )
        self.dirty = True

    def add_subdirectories(self, count: int) -> None:
        """Count directories that came (or, negative, went) as links to this one."""
        self.entry = msgspec.structs.replace(self.entry, nlink=self.entry.nlink + count)
        self.dirty = True

    def rebase(self, entry: TreeEntry) -> None:
        """Start anew from ``entry``, whose tree holds all that was changed."""
        self.entry = entry
        self.changes.clear()
        self._changed_slots.clear()
        self.dirty = False

    def become(self, entry: TreeEntry) -> None:
        """Start from another tree than before: nothing was ever in here."""
        self.rebase(entry)
        self.next_slot = self._slots_from(entry)

    def _slots_from(self, entry: TreeEntry) -> int:
        tree_id = tree_id_of(entry)
        return self._trees.get(tree_id).next_slot if tree_id is not None else 1

    def links_entry(self) -> TreeEntry:
        """Return the entry of this scope's hidden directory of hard-linked inodes."""
        links_id = links_id_of(self.entry)
        content = bytes(links_id) if links_id is not None else b""
        return TreeEntry(name=LINKS_NAME, slot=LINKS_SLOT, mode=0o040000, content=content)


class CatalogDirectory(Directory):
    """The root of a catalogue view: every snapshot of the store, under what the view wrote.

    All the view's own entries are in ``changes``, whiteouts of snapshots among them: they hide the
    snapshot of that sequence number, not a later one of the same name. The catalogue is read
    afresh each time, so what other processes add or remove is seen.
    """

    def __init__(
        self,
        trees: TreeReader,
        number: int,
        entry: TreeEntry,
        places: dict[int, int],
        catalog: SnapshotCatalog,
    ) -> None:
        super().__init__(trees, number, entry, None, places)
        self._catalog = catalog
        self.next_slot = max(self.next_slot, CATALOG_SLOTS_START)
        for own in trees.entries(tree_id_of(entry)):
            self.changes[own.name] = own
            self._changed_slots[own.slot] = own.name

    def find(self, name: bytes) -> TreeEntry | None:
        """Return what the view wrote under ``name``, else the snapshot of that name."""
        own = self.changes.get(name)
        if own is not None and not own.is_whiteout:
            return own
        info = self._catalog.find(name.decode("utf-8", "surrogateescape"))
        return None if info is None or self.stands_in(info.sequence) else snapshot_entry(info)

    def owns(self, entry: TreeEntry) -> bool:
        """Whether ``entry`` is the view's own, and not a snapshot's."""
        return self.changes.get(entry.name) is entry

    def stands_in(self, sequence: int) -> bool:
        """Whether an entry of the view, or a whiteout, takes the place of this snapshot.

        Under whatever name: another process may have renamed the snapshot since.
        """
        name = self._changed_slots.get(sequence)
        own = self.changes.get(name) if name is not None else None
        return own is not None and own.slot == sequence

    def by_slot(self, slot: int) -> TreeEntry | None:
        """Return the entry in ``slot``; a snapshot's slot is its sequence number."""
        name = self._changed_slots.get(slot)
        own = self.changes.get(name) if name is not None else None
        if own is not None and own.slot == slot:
            return None if own.is_whiteout else own
        for info in self._catalog.list():
            if info.sequence == slot:
                entry = snapshot_entry(info)
                return entry if self.find(entry.name) == entry else None
        return None

    def entries(self) -> list[TreeEntry]:
        """Return the view's own entries and the snapshots that they do not hide."""
        found = {
            name: entry
            for name, entry in self.changes.items()
            if entry is not None and not entry.is_whiteout
        }
        for info in self._catalog.list():
            name = info.name.encode()
            if name not in found and not self.stands_in(info.sequence):
                found[name] = snapshot_entry(info)
        return sorted(found.values(), key=lambda entry: entry.name)

    @property
    def nlink(self) -> int:
        """2 and one for each subdirectory, snapshots included."""
        return 2 + sum(entry.is_directory for entry in self.entries())

    def own_entries(self) -> Iterator[TreeEntry]:
        """Yield what the view itself keeps here, whiteouts included."""
        for name in sorted(self.changes):
            entry = self.changes[name]
            if entry is not None:
                yield entry

    def is_empty(self) -> bool:
        """Whether nothing is to be seen."""
        return not self.entries()

    def remove(self, name: bytes, hide: int = 0) -> None:
        """Remove the view's own entry, and hide the snapshot with sequence number ``hide``."""
        self.dirty = True
        self.changes.pop(name, None)
        if hide:
            self.changes[name] = TreeEntry(name=name, slot=hide, mode=0)
            self._changed_slots[hide] = name

    def sequence_under(self, name: bytes) -> int:
        """Return the sequence number of the snapshot that has this name, now or before, or 0."""
        info = self._catalog.find(name.decode("utf-8", "surrogateescape"))
        if info is not None:
            return info.sequence
        own = self.changes.get(name)
        return own.slot if own is not None and own.slot < CATALOG_SLOTS_START else 0

    def rebase(self, entry: TreeEntry) -> None:
        """Start anew from ``entry``; the view's own entries stay in memory."""
        self.entry = entry
        self.dirty = False


def snapshot_entry(info: SnapshotInfo) -> TreeEntry:
    """Return the entry of a snapshot in a catalogue's root."""
    return msgspec.structs.replace(info.root, name=info.name.encode(), slot=info.sequence)


def keeps_links(entry: TreeEntry) -> bool:
    """Whether a directory in a catalogue's root keeps the hard links below it to itself."""
    return entry.slot < CATALOG_SLOTS_START or links_id_of(entry) is not None
