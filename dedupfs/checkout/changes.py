"""What has to be done to one tree so that it becomes another, at the cost of what differs.

Unlike ``transfer/compare``, nothing is left out that a file system keeps: an entry that is not
equal in every attribute but its access time is a change. Knows trees, no file system.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from dedupfs.format.tree import decode_tree_page
from dedupfs.model import RecordId, RecordKind, Tree, TreeEntry, is_file_name
from dedupfs.namespace.trees import TreeReader, links_id_of, tree_id_of
from dedupfs.store import Store


@dataclass(frozen=True, slots=True)
class Item:
    """An object of a tree. ``entry`` has its hard link resolved; ``link_id`` is b"" without one."""

    entry: TreeEntry
    link_id: bytes = b""


@dataclass(frozen=True, slots=True)
class Change:
    """One object that is to become another; ``path`` is b"" for the top."""

    path: bytes
    before: Item | None
    after: Item | None

    @property
    def was_directory(self) -> bool:
        """Whether there is a directory."""
        return self.before is not None and self.before.entry.is_directory

    @property
    def is_directory(self) -> bool:
        """Whether there is to be a directory."""
        return self.after is not None and self.after.entry.is_directory


_Pair = tuple[TreeEntry | None, TreeEntry | None, bytes]


class Comparison:
    """Compares the trees of two roots; None is nothing at all.

    ``everything``: yields what is equal, too. ``impossible``: names met that no file can have; they
    are left out, with all below them.
    """

    def __init__(
        self,
        store: Store,
        before: TreeEntry | None,
        after: TreeEntry | None,
        *,
        everything: bool = False,
    ) -> None:
        self._store = store
        self._reader = TreeReader(store)
        self._before = before
        self._after = after
        self._everything = everything
        self.impossible: list[bytes] = []
        self._same_links = (
            before is not None and after is not None and links_id_of(before) == links_id_of(after)
        )

    def changes(self) -> Iterator[Change]:
        """Yield changes, in the order of names, a directory in front of what is in it.

        Each directory with a change below it is one, too.

        Raises:
            MissingRecordError, CorruptError: a record that had to be looked at is damaged.
        """
        stack = [self._compare(self._before, self._after, b"")]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
            elif isinstance(found, Change):
                yield found
            else:
                stack.append(self._children(*found))

    def _compare(
        self, before: TreeEntry | None, after: TreeEntry | None, path: bytes
    ) -> Iterator[Change | _Pair]:
        one = self._item(self._before, before)
        other = self._item(self._after, after)
        if one is not None and other is not None and self._is_same(one, other):
            return
        change = Change(path, one, other)
        yield change
        if change.was_directory or change.is_directory:
            yield (
                before if change.was_directory else None,
                after if change.is_directory else None,
                path,
            )

    def _item(self, root: TreeEntry | None, entry: TreeEntry | None) -> Item | None:
        if root is None or entry is None:
            return None
        return Item(self._reader.resolve(root, entry), entry.content if entry.is_link else b"")

    def _is_same(self, one: Item, other: Item) -> bool:
        if self._everything:
            return False
        before, after = one.entry, other.entry
        if _kept(before) != _kept(after) or one.link_id != other.link_id:
            return False
        if before.is_directory:
            same_tree = tree_id_of(before) == tree_id_of(after)
            return same_tree and (self._same_links or not before.has_links)
        return before.content == after.content

    def _children(
        self, before: TreeEntry | None, after: TreeEntry | None, path: bytes
    ) -> Iterator[Change | _Pair]:
        one_tree, other_tree = self._tree(before), self._tree(after)
        shared: set[RecordId] = set()
        if self._same_links and not self._everything:
            shared = {page.page_id for page in one_tree.pages}
            shared &= {page.page_id for page in other_tree.pages}
        ones, others = self._entries(one_tree, shared), self._entries(other_tree, shared)
        one, other = next(ones, None), next(others, None)
        while one is not None or other is not None:
            name = min(entry.name for entry in (one, other) if entry is not None)
            before_child = after_child = None
            if one is not None and one.name == name:
                before_child, one = one, next(ones, None)
            if other is not None and other.name == name:
                after_child, other = other, next(others, None)
            if is_file_name(name):  # only a crafted tree has others
                yield from self._compare(before_child, after_child, join(path, name))
            else:
                self.impossible.append(join(path, name))

    def _tree(self, entry: TreeEntry | None) -> Tree:
        tree_id = tree_id_of(entry) if entry is not None else None
        return self._reader.get(tree_id) if tree_id is not None else Tree(1)

    def _entries(self, tree: Tree, without: set[RecordId]) -> Iterator[TreeEntry]:
        yield from tree.entries
        for page in tree.pages:
            if page.page_id not in without:
                yield from decode_tree_page(self._store.get(page.page_id, RecordKind.TREE_PAGE))


def walk(store: Store, root: TreeEntry) -> Iterator[tuple[bytes, Item]]:
    """Yield every object of a tree, the top first."""
    for change in Comparison(store, None, root).changes():
        assert change.after is not None
        yield change.path, change.after


def _kept(entry: TreeEntry) -> tuple[object, ...]:
    return (entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs, entry.rdev)


def join(path: bytes, name: bytes) -> bytes:
    """Return the path of a name in a directory."""
    return path + b"/" + name if path else name
