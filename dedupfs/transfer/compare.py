"""What differs between two directories of snapshots, at the cost of what differs.

Equal trees, pages and recipes are skipped by their ids. Knows trees and extents, no file system.
"""

import enum
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from dedupfs.errors import CorruptError, MissingRecordError
from dedupfs.format.tree import decode_tree_page
from dedupfs.model import RecordId, RecordKind, Tree, TreeEntry
from dedupfs.namespace.contents import load_recipe
from dedupfs.namespace.trees import TreeReader, links_id_of, tree_id_of
from dedupfs.recipe import Recipe
from dedupfs.store import Store

_COMPARE_BYTES = 1 << 20


class Kind(enum.Enum):
    """How an object differs."""

    ADDED = "added"
    REMOVED = "removed"
    CONTENT = "modified"
    METADATA = "metadata"
    TYPE = "type"


@dataclass(frozen=True, slots=True)
class Difference:
    """One object that differs; ``path`` is below the compared directories, b"" they themselves,
    unless these were given a path."""

    kind: Kind
    path: bytes
    before: TreeEntry | None
    after: TreeEntry | None


@dataclass(frozen=True, slots=True)
class Side:
    """A directory to compare, and the root of the snapshot it lies in."""

    root: TreeEntry
    top: TreeEntry


def compare(
    store: Store,
    before: TreeEntry | Side,
    after: TreeEntry | Side,
    *,
    reader: TreeReader | None = None,
    path: bytes = b"",
) -> Iterator[Difference]:
    """Yield the differences, in path order, a directory in front of what is in it.

    ``path``: that of the compared directories.

    Raises:
        MissingRecordError, CorruptError: a record that had to be looked at is damaged.
    """
    one = before if isinstance(before, Side) else Side(before, before)
    other = after if isinstance(after, Side) else Side(after, after)
    comparison = _Comparison(store, reader or TreeReader(store), one.root, other.root)
    yield from comparison.objects(one.top, other.top, path)


class _Comparison:
    def __init__(
        self, store: Store, reader: TreeReader, before_root: TreeEntry, after_root: TreeEntry
    ) -> None:
        self._store = store
        self._reader = reader
        self._before_root = before_root
        self._after_root = after_root
        self._same_links = links_id_of(before_root) == links_id_of(after_root)

    def objects(self, before: TreeEntry, after: TreeEntry, path: bytes) -> Iterator[Difference]:
        """Compare two objects of one path, and what is below them. Recursion is by hand: a tree
        may be deeper than Python's stack.
        """
        stack = [self._pair(before, after, path)]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
            elif isinstance(found, Difference):
                yield found
            else:
                stack.append(self._directories(*found))

    def _pair(
        self, before: TreeEntry, after: TreeEntry, path: bytes
    ) -> Iterator["Difference | _Directories"]:
        before = self._reader.resolve(self._before_root, before)
        after = self._reader.resolve(self._after_root, after)
        if stat.S_IFMT(before.mode) != stat.S_IFMT(after.mode):
            yield Difference(Kind.TYPE, path, before, after)
            if before.is_directory:
                yield before, None, path
            if after.is_directory:
                yield None, after, path
            return
        if not before.is_directory and not self._is_same_content(before, after):
            yield Difference(Kind.CONTENT, path, before, after)
        elif _metadata(before) != _metadata(after):
            yield Difference(Kind.METADATA, path, before, after)
        if before.is_directory and not self._is_same_tree(before, after):
            yield before, after, path

    def _is_same_tree(self, before: TreeEntry, after: TreeEntry) -> bool:
        if tree_id_of(before) != tree_id_of(after):
            return False
        return self._same_links or not before.has_links

    def _is_same_content(self, before: TreeEntry, after: TreeEntry) -> bool:
        if not before.is_file:
            return before.content == after.content and before.rdev == after.rdev
        if before.size != after.size:
            return False
        return before.content == after.content or self._is_same_data(before.content, after.content)

    def _is_same_data(self, before: bytes, after: bytes) -> bool:
        """Whether two recipes make the same bytes, though they may be cut differently."""
        one, other = load_recipe(self._store, before), load_recipe(self._store, after)
        if one.size != other.size:
            return False
        return all(
            self._store.read(one.cut(start, stop)) == self._store.read(other.cut(start, stop))
            for start, stop in _unlike_ranges(one, other)
        )

    def _directories(
        self, before: TreeEntry | None, after: TreeEntry | None, path: bytes
    ) -> Iterator["Difference | _Directories"]:
        """Compare two directories; damage is told with where it is."""
        try:
            yield from self._merged(before, after, path)
        except (CorruptError, MissingRecordError) as exc:
            where = path.decode("utf-8", "surrogateescape")
            raise type(exc)(f"cannot compare /{where}: {exc}") from exc

    def _merged(
        self, before: TreeEntry | None, after: TreeEntry | None, path: bytes
    ) -> Iterator["Difference | _Directories"]:
        """Merge the two directories' names."""
        ones, others = self._entries_to_compare(before, after)
        one, other = next(ones, None), next(others, None)
        while one is not None or other is not None:
            if other is None or (one is not None and one.name < other.name):
                assert one is not None
                yield from self._alone(one, path, removed=True)
                one = next(ones, None)
            elif one is None or other.name < one.name:
                yield from self._alone(other, path, removed=False)
                other = next(others, None)
            else:
                yield from self._pair(one, other, _join(path, one.name))
                one, other = next(ones, None), next(others, None)

    def _alone(
        self, entry: TreeEntry, path: bytes, *, removed: bool
    ) -> Iterator["Difference | _Directories"]:
        path = _join(path, entry.name)
        if removed:
            entry = self._reader.resolve(self._before_root, entry)
            yield Difference(Kind.REMOVED, path, entry, None)
        else:
            entry = self._reader.resolve(self._after_root, entry)
            yield Difference(Kind.ADDED, path, None, entry)
        if entry.is_directory:
            yield (entry, None, path) if removed else (None, entry, path)

    def _entries_to_compare(
        self, before: TreeEntry | None, after: TreeEntry | None
    ) -> tuple[Iterator[TreeEntry], Iterator[TreeEntry]]:
        """Return both directories' entries, without the pages that they share."""
        one, other = self._tree(before), self._tree(after)
        shared: set[RecordId] = set()
        if self._same_links:
            shared = {page.page_id for page in one.pages} & {page.page_id for page in other.pages}
        return self._entries(one, shared), self._entries(other, shared)

    def _tree(self, entry: TreeEntry | None) -> Tree:
        tree_id = tree_id_of(entry) if entry is not None else None
        return self._reader.get(tree_id) if tree_id is not None else Tree(1)

    def _entries(self, tree: Tree, without: set[RecordId]) -> Iterator[TreeEntry]:
        yield from tree.entries
        for page in tree.pages:
            if page.page_id not in without:
                yield from decode_tree_page(self._store.get(page.page_id, RecordKind.TREE_PAGE))


_Directories = tuple[TreeEntry | None, TreeEntry | None, bytes]


def _metadata(entry: TreeEntry) -> tuple[object, ...]:
    """What of an object besides its content a user would call a change."""
    # A directory's mtime only says that names came or went, which is told for each of them.
    mtime_ns = 0 if entry.is_directory else entry.mtime_ns
    return (entry.mode, entry.uid, entry.gid, mtime_ns, entry.xattrs)


def _unlike_ranges(one: Recipe, other: Recipe) -> Iterator[tuple[int, int]]:
    """Yield the file ranges, in bounded steps, where the recipes do not name the same extents."""
    start = 0
    while start < one.size:
        index, other_index = one.index_at(start), other.index_at(start)
        bounds, other_bounds = one.bounds(index), other.bounds(other_index)
        if one.ids[index] == other.ids[other_index] and bounds == other_bounds:
            start = bounds[1]
            continue
        stop = min(bounds[1], other_bounds[1], start + _COMPARE_BYTES)
        yield start, stop
        start = stop


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name
