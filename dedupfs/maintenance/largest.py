"""What takes the space inside snapshots: the largest files, and the largest directories of one.

Best first: the largest directory that is not looked into yet comes next, since nothing in it is
larger than itself. So only those directories are read that could hold what is looked for.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from dedupfs.errors import StoreError
from dedupfs.model import HOLE, RecordId, SnapshotInfo, TreeEntry
from dedupfs.namespace.trees import TreeReader, links_id_of, tree_id_of

TREES_MAX = 20_000
"""How many directories are looked into before a search ends with what it has."""


@dataclass(frozen=True, slots=True)
class LargeFile:
    """One content; ``path`` is where the newest snapshot that has it shows it."""

    snapshot: str
    path: bytes
    logical_bytes: int


@dataclass(frozen=True, slots=True)
class LargeDirectory:
    """``logical_bytes`` and ``entries`` are all below it, hard-linked files apart."""

    path: bytes
    logical_bytes: int
    entries: int


@dataclass(slots=True)
class Largest:
    """``is_complete``: false when there was too much to look at, or something unreadable."""

    files: list[LargeFile] = field(default_factory=list)
    is_complete: bool = True


@dataclass(slots=True)
class _Search:
    """A heap of what was seen and not yet taken, the largest first."""

    heap: list[tuple[int, int, int, bytes, TreeEntry]] = field(default_factory=list)
    count: int = 0

    def push(self, size: int, root: int, path: bytes, entry: TreeEntry) -> None:
        self.count += 1  # breaks ties: what was seen first comes first
        heapq.heappush(self.heap, (-size, self.count, root, path, entry))

    def pop_all(self) -> Iterator[tuple[int, int, bytes, TreeEntry]]:
        while self.heap:
            negative, _, root, path, entry = heapq.heappop(self.heap)
            yield -negative, root, path, entry


def largest_files(trees: TreeReader, snapshots: Sequence[SnapshotInfo], count: int) -> Largest:
    """Return the ``count`` largest contents of these snapshots, which come newest first."""
    return _FileSearch(trees, snapshots).run(count)


class _FileSearch:
    def __init__(self, trees: TreeReader, snapshots: Sequence[SnapshotInfo]) -> None:
        self._trees = trees
        self._snapshots = snapshots
        self._links = _LinkSizes(trees)
        self._search = _Search()
        self._seen: set[tuple[RecordId, RecordId | None]] = set()
        self._found = Largest()

    def run(self, count: int) -> Largest:
        files = self._found.files
        contents: set[bytes] = set()
        for number, info in enumerate(self._snapshots):
            size = self._links.bound(info.root, info.root, self._tell)
            self._search.push(size, number, b"", info.root)
        for size, number, path, entry in self._search.pop_all():
            if entry.is_directory:
                if not self._look_into(number, path, entry):
                    break
            elif entry.content not in contents:
                contents.add(entry.content)
                files.append(LargeFile(self._snapshots[number].name, path, size))
                if len(files) == count:
                    break
        return self._found

    def _tell(self, _error: StoreError) -> None:
        self._found.is_complete = False

    def _look_into(self, number: int, path: bytes, directory: TreeEntry) -> bool:
        """Push what is in a directory; return False when there were too many of them."""
        root = self._snapshots[number].root
        tree_id = tree_id_of(directory)
        has_links = directory.has_links or directory is root
        place = tree_id or HOLE, links_id_of(root) if has_links else None
        if tree_id is None or place in self._seen:
            return True
        if len(self._seen) == TREES_MAX:
            self._found.is_complete = False
            return False
        self._seen.add(place)
        for child in self._trees.sound_entries(tree_id, self._tell):
            below = path + b"/" + child.name if path else child.name
            if child.is_directory:
                size = self._links.bound(root, child, self._tell)
                self._search.push(size, number, below, child)
            else:
                self._note_file(number, below, child)
        return True

    def _note_file(self, number: int, path: bytes, entry: TreeEntry) -> None:
        try:
            inode = self._trees.resolve(self._snapshots[number].root, entry)
        except StoreError as exc:
            self._tell(exc)
            return
        if inode.is_file and inode.size:
            self._search.push(inode.size, number, path, inode)


class _LinkSizes:
    """The largest hard-linked file of each scope: sums of directories leave those files out."""

    def __init__(self, trees: TreeReader) -> None:
        self._trees = trees
        self._largest: dict[RecordId, int] = {}

    def bound(
        self, root: TreeEntry, directory: TreeEntry, tell: Callable[[StoreError], None]
    ) -> int:
        """Return what no file in ``directory`` is larger than."""
        links_id = links_id_of(root)
        if links_id is None or not (directory.has_links or directory is root):
            return directory.size
        if links_id not in self._largest:
            inodes = self._trees.sound_entries(links_id, tell)
            self._largest[links_id] = max((i.size for i in inodes if i.is_file), default=0)
        return max(directory.size, self._largest[links_id])


def largest_directories(trees: TreeReader, root: TreeEntry, count: int) -> list[LargeDirectory]:
    """Return a root and the largest directories below it, parents before what is in them."""
    search = _Search()
    search.push(root.size, 0, b"", root)
    found: list[LargeDirectory] = []
    for size, _, path, entry in search.pop_all():
        found.append(LargeDirectory(path, size, entry.count))
        if len(found) == count:
            break
        for child in trees.sound_entries(tree_id_of(entry), lambda _error: None):
            if child.is_directory and child.size:
                below = path + b"/" + child.name if path else child.name
                search.push(child.size, 0, below, child)
    return sorted(found, key=lambda directory: directory.path.split(b"/") if directory.path else [])
