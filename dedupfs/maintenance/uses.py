"""From bad records to the files they hit: which snapshot or view, which path.

Reads trees through the store and knows no pack. It costs a walk over every distinct tree, so it is
made only once something is known to be bad.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from dedupfs.errors import StoreError
from dedupfs.format.keys import decode_location, split_pin_key
from dedupfs.format.tree import (
    decode_extents,
    decode_recipe,
    decode_tree,
    decode_tree_page,
    decode_view_root,
    entry_references,
)
from dedupfs.model import ID_BYTES, RecordId, TreeEntry
from dedupfs.namespace.rows import decode_snapshot_row, decode_view_row, view_owner_key
from dedupfs.namespace.trees import links_id_of, tree_id_of
from dedupfs.store import ReadTxn, Store, Table
from dedupfs.store.inventory import payload_of

T = TypeVar("T")

USES_MAX = 1000
"""How many files are named for one bad record; a chunk may be in very many."""


@dataclass(frozen=True, slots=True)
class Use:
    """One file that a bad record hits. ``holder`` is "snapshot NAME" or "view NAME".

    ``path`` is b"" for the whole of it. A directory stands for everything below it.
    """

    holder: str
    path: bytes

    @property
    def kind(self) -> str:
        """Return "snapshot" or "view"."""
        return self.holder.partition(" ")[0]

    @property
    def name(self) -> str:
        """Return which snapshot or view it is."""
        return self.holder.partition(" ")[2].partition(",")[0]

    def __str__(self) -> str:
        """Name it as a shell would."""
        return f"{self.holder}: /{self.path.decode('utf-8', 'backslashreplace')}"


@dataclass(frozen=True, slots=True)
class _Hit:
    """One child of a directory that is bad itself (``record_id``) or leads on to bad ones."""

    name: bytes
    record_id: RecordId | None
    below: tuple[RecordId, RecordId | None] | None


_Place = tuple[RecordId, RecordId | None]
"""A tree, and the links tree of its scope if that has hits: what decides which paths below are."""


def _sound(txn: ReadTxn, table: Table, decode: Callable[[bytes], T]) -> Iterator[T]:
    """Yield the rows of a table but those that are none, which check tells of."""
    for _, row in txn.scan(table):
        with suppress(StoreError):
            yield decode(row)


class UseFinder:
    """Finds all uses of a set of bad records."""

    def __init__(self, store: Store, bad: frozenset[RecordId]) -> None:
        self._store = store
        self._bad = bad
        self._hits: dict[_Place, list[_Hit]] = {}
        self._contents: dict[bytes, tuple[RecordId, ...]] = {}
        self._bad_links: dict[RecordId, dict[bytes, tuple[RecordId, ...]]] = {}
        self._uses: dict[RecordId, dict[Use, None]] = defaultdict(dict)

    def find(self) -> dict[RecordId, list[Use]]:
        """Return the uses of each bad record that has any, at most ``USES_MAX`` of each."""
        for holder, record_id, root in self._roots():
            if record_id in self._bad or root is None:
                self._note(record_id, Use(holder, b""))
            if root is not None:
                self._walk_root(holder, root)
        self._note_pins()
        return {record_id: list(uses) for record_id, uses in self._uses.items()}

    def _note(self, record_id: RecordId, use: Use) -> None:
        uses = self._uses[record_id]
        if len(uses) < USES_MAX:
            uses[use] = None

    # --- roots --------------------------------------------------------------------------------

    def _roots(self) -> Iterator[tuple[str, RecordId, TreeEntry | None]]:
        with self._store.reading() as txn:
            snapshots = list(_sound(txn, Table.SNAPSHOTS, decode_snapshot_row))
            views = list(_sound(txn, Table.VIEWS, decode_view_row))
        for info, record_id in snapshots:
            yield f"snapshot {info.name}", record_id, info.root
        for view in views:
            found = self._get(view.root_id, decode_view_root)
            yield f"view {view.name}", view.root_id, found.root if found is not None else None

    def _note_pins(self) -> None:
        """What a view's journal holds has no path that could be told without replaying it."""
        with self._store.reading() as txn:
            for view in _sound(txn, Table.VIEWS, decode_view_row):
                for key, _count in txn.scan(Table.PINS, view_owner_key(view.view_id)):
                    pinned = split_pin_key(key)[1]
                    if pinned in self._bad:
                        self._note(pinned, Use(f"view {view.name}, a file being written", b""))

    def _get(self, record_id: RecordId, decode: Callable[[bytes], T]) -> T | None:
        """Return a decoded record; None when it is missing, or not what it should be.

        One that is bad otherwise (its sums are wrong) leads on to others.
        """
        row = self._store.db.record_row(record_id)
        if row is None:
            return None
        try:
            return decode(bytes(payload_of(self._store, record_id, decode_location(row)[0])))
        except StoreError:
            return None

    # --- trees --------------------------------------------------------------------------------

    def _walk_root(self, holder: str, root: TreeEntry) -> None:
        start = self._place_of(root, None)
        if start is None:
            return
        for record_id in self._bad_trees(root):
            self._note(record_id, Use(holder, b""))
        self._explore(start)
        pending: list[tuple[bytes, _Place]] = [(b"", start)]
        while pending:
            path, place = pending.pop()
            for hit in self._hits[place]:
                child = path + hit.name
                if hit.record_id is not None:
                    self._note(hit.record_id, Use(holder, child))
                if hit.below is not None:
                    pending.append((child + b"/", hit.below))

    def _place_of(self, entry: TreeEntry, outer: RecordId | None) -> _Place | None:
        """Return where to look below a directory; its own links tree starts a new scope."""
        tree_id = tree_id_of(entry)
        if tree_id is None:
            return None
        links_id = links_id_of(entry)
        if links_id is None:
            return tree_id, outer
        if links_id not in self._bad_links:
            self._bad_links[links_id] = {
                inode.name: bad
                for inode in self._entries(links_id)
                if inode.is_file and (bad := self._bad_in_content(inode.content))
            }
        return tree_id, links_id if self._bad_links[links_id] else None

    def _explore(self, start: _Place) -> None:
        """Fill ``_hits`` for ``start`` and all below it, children first."""
        pending: list[tuple[_Place, list[_Hit] | None]] = [(start, None)]
        while pending:
            place, hits = pending.pop()
            if hits is not None:
                self._hits[place] = [
                    hit for hit in hits if hit.below is None or self._hits[hit.below]
                ]
            elif place not in self._hits:
                hits = list(self._own_hits(place))
                pending.append((place, hits))
                pending += [(hit.below, None) for hit in hits if hit.below is not None]

    def _own_hits(self, place: _Place) -> Iterator[_Hit]:
        tree_id, links_id = place
        links = self._bad_links[links_id] if links_id is not None else {}
        for entry in self._entries(tree_id):
            bad: tuple[RecordId, ...] = ()
            if entry.is_link:
                bad = links.get(entry.content, ())
            elif entry.is_file:
                bad = self._bad_in_content(entry.content)
            elif entry.is_directory:
                bad = self._bad_trees(entry)
                below = self._place_of(entry, links_id)
                if below is not None:
                    yield _Hit(entry.name, None, below)
            for record_id in bad:
                yield _Hit(entry.name, record_id, None)

    def _bad_trees(self, entry: TreeEntry) -> tuple[RecordId, ...]:
        """Return what is bad of the records that make a directory, its pages included."""
        bad = []
        for tree_id in entry_references(entry):
            if tree_id in self._bad:
                bad.append(tree_id)
                continue
            tree = self._get(tree_id, decode_tree)
            if tree is not None:
                bad += [listed.page_id for listed in tree.pages if listed.page_id in self._bad]
        return tuple(bad)

    def _entries(self, tree_id: RecordId) -> Iterator[TreeEntry]:
        tree = self._get(tree_id, decode_tree)
        if tree is None:
            return
        yield from tree.entries
        for listed in tree.pages:
            yield from self._get(listed.page_id, decode_tree_page) or ()

    # --- contents -----------------------------------------------------------------------------

    def _bad_in_content(self, content: bytes) -> tuple[RecordId, ...]:
        if len(content) != ID_BYTES:
            return self._bad_in_extents(content)
        if content not in self._contents:
            self._contents[content] = self._bad_in_recipe(RecordId(content))
        return self._contents[content]

    def _bad_in_extents(self, packed: bytes) -> tuple[RecordId, ...]:
        try:
            ids = dict.fromkeys(extent.chunk_id for extent in decode_extents(packed))
        except StoreError:
            return ()  # check tells of such an entry
        return tuple(chunk_id for chunk_id in ids if chunk_id in self._bad)

    def _bad_in_recipe(self, recipe_id: RecordId) -> tuple[RecordId, ...]:
        if recipe_id in self._bad:
            return (recipe_id,)
        bad: dict[RecordId, None] = {}
        for page_id, _ in self._get(recipe_id, decode_recipe) or ():
            if page_id in self._bad:
                bad[page_id] = None
                continue
            page = self._get(page_id, bytes)
            bad.update(dict.fromkeys(self._bad_in_extents(page or b"")))
        return tuple(bad)
