"""Immutable trees: reading them through a cache, and putting new ones.

Knows trees as records by id. Source: docs/format.md, "Payloads"; model.TreeEntry says what an
entry means.
"""

import stat
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import msgspec

from dedupfs.errors import CorruptError, NotADirectoryNameError, NotFoundError, StoreError
from dedupfs.format.tree import (
    TREE_ENTRIES_MAX,
    decode_tree,
    decode_tree_page,
    encode_tree,
    encode_tree_page,
    split_entries,
)
from dedupfs.model import ID_BYTES, RecordId, RecordKind, Tree, TreeEntry, TreePage
from dedupfs.store.store import Store

Entries = tuple[TreeEntry, ...]


class _Page:
    """Decoded entries with what look-ups need: their names, and their slots when asked."""

    __slots__ = ("entries", "names", "slots")

    def __init__(self, entries: Entries) -> None:
        self.entries = entries
        self.names = [entry.name for entry in entries]
        self.slots: dict[int, TreeEntry] | None = None

    def find(self, name: bytes) -> TreeEntry | None:
        index = bisect_left(self.names, name)
        if index < len(self.names) and self.names[index] == name:
            return self.entries[index]
        return None

    def by_slot(self, slot: int) -> TreeEntry | None:
        if 0 < slot <= len(self.entries) and self.entries[slot - 1].slot == slot:
            return self.entries[slot - 1]  # as in every tree that was imported
        if self.slots is None:
            self.slots = {entry.slot: entry for entry in self.entries}
        return self.slots.get(slot)


class TreeReader:
    """Decoded trees and pages, the most recently used ones kept. Not for several threads."""

    def __init__(self, store: Store, entries_max: int = 100_000) -> None:
        self._store = store
        self._entries_max = entries_max
        self._trees: OrderedDict[RecordId, tuple[Tree, _Page]] = OrderedDict()
        self._pages: OrderedDict[RecordId, _Page] = OrderedDict()
        self._entry_count = 0
        self.reads = 0
        """How many trees and pages were not in the cache so far."""

    def get(self, tree_id: RecordId) -> Tree:
        """Return the tree; its entries are empty when it is paged.

        Raises:
            MissingRecordError, CorruptError: the record is not there or not a tree.
        """
        return self._load(tree_id)[0]

    def _load(self, tree_id: RecordId) -> tuple[Tree, _Page]:
        found = self._trees.get(tree_id)
        if found is not None:
            self._trees.move_to_end(tree_id)
            return found
        self.reads += 1
        tree = decode_tree(self._store.get(tree_id, RecordKind.TREE))
        loaded = tree, _Page(tree.entries)
        self._trees[tree_id] = loaded
        self._admit(len(tree.entries) + len(tree.pages))
        return loaded

    def _load_page(self, page_id: RecordId) -> _Page:
        page = self._pages.get(page_id)
        if page is not None:
            self._pages.move_to_end(page_id)
            return page
        self.reads += 1
        page = _Page(decode_tree_page(self._store.get(page_id, RecordKind.TREE_PAGE)))
        self._pages[page_id] = page
        self._admit(len(page.entries))
        return page

    def _admit(self, entry_count: int) -> None:
        self._entry_count += entry_count + 4
        while self._entry_count > self._entries_max:
            if len(self._trees) > 1:
                _, (tree, _) = self._trees.popitem(last=False)
                self._entry_count -= len(tree.entries) + len(tree.pages) + 4
            if len(self._pages) > 1:
                _, page = self._pages.popitem(last=False)
                self._entry_count -= len(page.entries) + 4
            if len(self._trees) <= 1 and len(self._pages) <= 1:
                return

    def find(self, tree_id: RecordId | None, name: bytes) -> TreeEntry | None:
        """Return the entry called ``name``, or None; None is the empty tree."""
        if tree_id is None:
            return None
        tree, page = self._load(tree_id)
        if not tree.pages:
            return page.find(name)
        index = bisect_right([page.first_name for page in tree.pages], name) - 1
        return self._load_page(tree.pages[index].page_id).find(name) if index >= 0 else None

    def by_slot(self, tree_id: RecordId | None, slot: int) -> TreeEntry | None:
        """Return the entry in ``slot``, or None. A paged tree is searched page by page."""
        if tree_id is None:
            return None
        tree, page = self._load(tree_id)
        if not tree.pages:
            return page.by_slot(slot)
        for listed in self._pages_near(tree, slot):
            loaded = self._load_page(listed.page_id)
            if loaded.slots is None:
                loaded.slots = {entry.slot: entry for entry in loaded.entries}
            found = loaded.slots.get(slot)
            if found is not None:
                return found
        return None

    @staticmethod
    def _pages_near(tree: Tree, slot: int) -> Iterator[TreePage]:
        """Yield the pages, the one where ``slot`` lies in an imported tree first."""
        first = 0
        guess = None
        for listed in tree.pages:
            if first < slot <= first + listed.count:
                guess = listed
                yield listed
            first += listed.count
        for listed in tree.pages:
            if listed is not guess:
                yield listed

    def entries(self, tree_id: RecordId | None) -> Iterator[TreeEntry]:
        """Yield all entries in name order."""
        if tree_id is None:
            return
        tree, page = self._load(tree_id)
        yield from page.entries
        for listed in tree.pages:
            yield from self._load_page(listed.page_id).entries

    def sound_entries(
        self, tree_id: RecordId | None, tell: Callable[[StoreError], None]
    ) -> Iterator[TreeEntry]:
        """Yield the entries that can be read, and ``tell`` why others cannot."""
        if tree_id is None:
            return
        try:
            tree, page = self._load(tree_id)
        except StoreError as exc:
            tell(exc)
            return
        pages = [page.entries]
        for listed in tree.pages:
            try:
                pages.append(self._load_page(listed.page_id).entries)
            except StoreError as exc:
                tell(exc)
        yield from chain.from_iterable(pages)

    def resolve(self, root: TreeEntry, entry: TreeEntry) -> TreeEntry:
        """Return the inode's entry when ``entry`` is a hard link of ``root``'s scope.

        The result keeps the name and slot of ``entry``; any other entry is returned as it is.

        Raises:
            CorruptError: the scope has no such link.
        """
        if not entry.is_link:
            return entry
        found = self.find(links_id_of(root), entry.content)
        if found is None:
            raise CorruptError(f"hard link {entry.content.hex()} of {entry.name!r} has no inode")
        return msgspec.structs.replace(found, name=entry.name, slot=entry.slot)

    def walk_path(self, root: TreeEntry, path: bytes) -> TreeEntry:
        """Return the entry at ``path`` (components joined by ``/``) below ``root``.

        Raises:
            NotFoundError, NotADirectoryNameError: the path leads nowhere.
        """
        entry = root
        for name in [part for part in path.split(b"/") if part and part != b"."]:
            if not entry.is_directory:
                raise NotADirectoryNameError(f"{entry.name!r} in {path!r} is no directory")
            found = self.find(tree_id_of(entry), name)
            if found is None:
                raise NotFoundError(f"no {name!r} in {path!r}")
            entry = self.resolve(root, found)
        return entry


def tree_id_of(entry: TreeEntry) -> RecordId | None:
    """Return the id of a directory entry's tree; None when the directory is empty."""
    return RecordId(entry.content[:ID_BYTES]) if entry.content else None


def links_id_of(entry: TreeEntry) -> RecordId | None:
    """Return the id of the links tree when ``entry`` is the root of a scope with hard links."""
    return RecordId(entry.content[ID_BYTES:]) if len(entry.content) == 2 * ID_BYTES else None


def put_tree(store: Store, entries: Sequence[TreeEntry], next_slot: int) -> RecordId:
    """Put the tree of ``entries``, which are sorted by name; a large one is put in pages."""
    slots_sorted = all(
        entries[index].slot < entries[index + 1].slot for index in range(len(entries) - 1)
    )
    if len(entries) <= TREE_ENTRIES_MAX:
        tree = Tree(next_slot, tuple(entries), (), slots_sorted)
    else:
        pages = tuple(
            TreePage(
                page[0].name,
                store.put(RecordKind.TREE_PAGE, encode_tree_page(page)),
                len(page),
            )
            for page in split_entries(entries)
        )
        tree = Tree(next_slot, (), pages, slots_sorted)
    return store.put(RecordKind.TREE, encode_tree(tree))


def directory_entry(
    name: bytes,
    slot: int,
    children: Iterable[TreeEntry],
    tree_id: RecordId | None,
    *,
    mode: int,
    uid: int,
    gid: int,
    mtime_ns: int,
    xattrs: tuple[tuple[bytes, bytes], ...] = (),
    links_id: RecordId | None = None,
    ctime_ns: int = 0,
    atime_ns: int = 0,
) -> TreeEntry:
    """Return the entry of a directory, with the sums over its children filled in.

    ``links_id`` is for the root of a scope; the links' own bytes are counted by ``resolve``-ing
    callers, not here: a hard-linked inode counts where its link entry says (``size`` of it).
    """
    size = count = 0
    nlink = 2
    has_links = False
    for child in children:
        count += 1 + child.count
        if child.is_link:
            has_links = True
        elif stat.S_ISDIR(child.mode):
            nlink += 1
            size += child.size
            has_links = has_links or child.has_links
        elif child.is_file:
            size += child.size
    content = bytes(tree_id) if tree_id is not None else b""
    if links_id is not None:
        if tree_id is None:
            raise CorruptError("a directory of no entries cannot have hard links")
        content += links_id
    return TreeEntry(
        name=name,
        slot=slot,
        mode=mode,
        uid=uid,
        gid=gid,
        mtime_ns=mtime_ns,
        size=size,
        content=content,
        xattrs=xattrs,
        nlink=nlink,
        ctime_ns=ctime_ns,
        atime_ns=atime_ns,
        count=count,
        has_links=has_links,
    )
