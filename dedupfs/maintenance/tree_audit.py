"""Do trees, recipes and their sums agree with each other? Pure: is fed payloads, reads nothing.

Every payload is looked at once, alone: what an entry says of its directory or file is kept as a
*claim* and compared at the end with the *sums* of the record that it names. When every claim holds
for its direct children, the sums of whole snapshots are right by induction. What a field means:
``model.TreeEntry``; how sums are made: ``namespace.trees.directory_entry``.
"""

import dataclasses
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from dedupfs.errors import CorruptError
from dedupfs.format.tree import decode_extents, decode_recipe
from dedupfs.maintenance.problems import RESTORE, Problems
from dedupfs.model import HOLE, ID_BYTES, RecordId, Tree, TreeEntry, is_file_name
from dedupfs.namespace.trees import directory_entry, links_id_of, tree_id_of

LINK_ID_BYTES = 8
_KINDS = {
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
    stat.S_IFCHR,
    stat.S_IFBLK,
}

InodesOf = Callable[[RecordId], dict[bytes, TreeEntry] | None]
"""Returns the inodes in a links tree by link id; None when the tree is lost."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What a directory's entry must say of its tree."""

    size: int
    count: int
    nlink: int
    has_links: bool

    def __str__(self) -> str:
        """Name the fields as stat(2) users know them."""
        links = "with" if self.has_links else "without"
        return f"{self.size} bytes, {self.count} entries, nlink {self.nlink}, {links} hard links"


NOTHING = Sums(0, 0, 2, False)


@dataclass(slots=True)
class _Links:
    """What a tree holds of its scope's hard links."""

    names: Counter[bytes] = field(default_factory=Counter)
    below: list[RecordId] = field(default_factory=list)


class TreeAudit:
    """Gathers facts with ``take_*``; ``finish`` compares them."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._sums: dict[RecordId, Sums] = {}
        self._claims: set[tuple[RecordId, RecordId | None, Sums]] = set()
        self._recipe_bytes: dict[RecordId, int] = {}
        self._recipe_claims: set[tuple[RecordId, int]] = set()
        self._page_bytes: dict[RecordId, int] = {}
        self._page_claims: set[tuple[RecordId, int]] = set()
        self._links: dict[RecordId, _Links] = {}
        self._scopes: set[tuple[RecordId, RecordId | None]] = set()
        self._paged: dict[RecordId, Tree] = {}
        self._bad_names: dict[RecordId, bytes] = {}
        """One name per tree that no file can have; links trees have such names."""

    # --- facts --------------------------------------------------------------------------------

    def take_recipe(self, record_id: RecordId, payload: bytes) -> None:
        """Take a RECIPE record."""
        pages = decode_recipe(payload)
        self._recipe_bytes[record_id] = sum(length for _, length in pages)
        self._page_claims.update(pages)

    def take_recipe_page(self, record_id: RecordId, payload: bytes) -> None:
        """Take a RECIPE_PAGE record."""
        self._page_bytes[record_id] = sum(extent.length for extent in decode_extents(payload))

    def take_tree(self, record_id: RecordId, tree: Tree) -> None:
        """Take a TREE record; that of a large directory waits for its pages until ``finish``."""
        if tree.pages:
            self._paged[record_id] = tree
            if tree.entries:
                self._complain(record_id, "has entries and pages at once")
        else:
            self._take_entries(record_id, tree, tree.entries)

    def take_root(self, where: str, root: TreeEntry) -> None:
        """Take the root of a snapshot or a view."""
        if not root.is_directory:
            self._problems.add("root", where, "the root is no directory", RESTORE)
            return
        self._take_directory(root)
        if root.has_links and links_id_of(root) is None and tree_id_of(root) is not None:
            self._scopes.add((RecordId(root.content), None))

    def _take_entries(self, record_id: RecordId, tree: Tree, entries: Sequence[TreeEntry]) -> None:
        self._audit_order(record_id, tree, entries)
        links = _Links()
        for entry in entries:
            if not is_file_name(entry.name):
                self._bad_names[record_id] = entry.name
            fault = entry_fault(entry)
            if fault:
                self._complain(record_id, f"entry {entry.name!r} {fault}")
            elif entry.is_link:
                links.names[entry.content] += 1
            elif entry.is_directory:
                self._take_directory(entry)
                if entry.has_links and len(entry.content) == ID_BYTES:
                    links.below.append(RecordId(entry.content))
            elif entry.is_file and len(entry.content) == ID_BYTES:
                self._recipe_claims.add((RecordId(entry.content), entry.size))
        if links.names or links.below:
            self._links[record_id] = links
        self._sums[record_id] = sums_of(entries)

    def _take_directory(self, entry: TreeEntry) -> None:
        said = Sums(entry.size, entry.count, entry.nlink, entry.has_links)
        tree_id = tree_id_of(entry)
        if tree_id is not None:
            links_id = links_id_of(entry)
            self._claims.add((tree_id, links_id, said))
            if links_id is not None:
                self._scopes.add((tree_id, links_id))
        elif said != NOTHING:
            self._problems.add(
                "tree-sums", f"empty directory {entry.name!r}", f"its entry says {said}", RESTORE
            )

    def _audit_order(self, record_id: RecordId, tree: Tree, entries: Sequence[TreeEntry]) -> None:
        names = [entry.name for entry in entries]
        if any(names[index] >= names[index + 1] for index in range(len(names) - 1)):
            self._complain(record_id, "its entries are not sorted by name, or a name is twice")
        slots = [entry.slot for entry in entries]
        if len(set(slots)) != len(slots):
            self._complain(record_id, "a slot is used twice")
        if slots and not (min(slots) > 0 and max(slots) < tree.next_slot):
            self._complain(
                record_id, f"slots {min(slots)} to {max(slots)}, next_slot {tree.next_slot}"
            )
        if tree.slots_sorted and slots != sorted(slots):
            self._complain(record_id, "says that slots rise with names, which they do not")

    def _complain(self, record_id: RecordId, what: str) -> None:
        self._problems.add("tree", f"tree {record_id.hex()}", what, RESTORE, record_id)

    # --- comparing ----------------------------------------------------------------------------

    def paged_trees(self) -> Iterator[tuple[RecordId, Tree]]:
        """Yield the trees whose pages ``take_pages`` must be given before ``finish``."""
        yield from self._paged.items()

    def take_pages(
        self, record_id: RecordId, tree: Tree, pages: Sequence[Sequence[TreeEntry]]
    ) -> None:
        """Take the pages of a large directory's tree."""
        for listed, page in zip(tree.pages, pages, strict=True):
            if len(page) != listed.count or not page or page[0].name < listed.first_name:
                self._complain(record_id, f"page {listed.page_id.hex()} differs from its listing")
        self._take_entries(record_id, tree, [entry for page in pages for entry in page])

    def finish(self, inodes_of: InodesOf, *, complete: bool) -> None:
        """Compare all claims; without ``complete`` some trees could not be read."""
        for tree_id in {claim[0] for claim in self._claims} & self._bad_names.keys():
            self._complain(tree_id, f"no file can have the name {self._bad_names[tree_id]!r}")
        for tree_id, links_id, said in self._claims:
            sums = self._sums.get(tree_id)
            if links_id is not None and inodes_of(links_id) is None:
                continue  # it is reported as missing or damaged already
            if sums is not None and said not in _with_links(sums, links_id, inodes_of):
                self._complain(tree_id, f"its directory's entry says {said}; it holds {sums}")
        for recipe_id, size in self._recipe_claims:
            held = self._recipe_bytes.get(recipe_id, size)
            if held != size:
                self._disagree("recipe", recipe_id, f"a file's entry says {size} bytes", held)
        for page_id, size in self._page_claims:
            held = self._page_bytes.get(page_id, size)
            if held != size:
                self._disagree("recipe page", page_id, f"a recipe says {size} bytes", held)
        for tree_id, links_id in self._scopes if complete else ():
            self._audit_scope(tree_id, links_id, inodes_of)

    def _disagree(self, what: str, record_id: RecordId, claim: str, held: int) -> None:
        where = f"{what} {record_id.hex()}"
        self._problems.add("recipe", where, f"{claim}; it holds {held}", RESTORE, record_id)

    def _audit_scope(
        self,
        tree_id: RecordId,
        links_id: RecordId | None,
        inodes_of: InodesOf,
    ) -> None:
        names = self._names_in_scope(tree_id)
        if links_id is None:
            if names:
                self._complain(tree_id, f"{len(names)} hard-linked inodes and no links tree")
            return
        inodes = inodes_of(links_id)
        if inodes is None:
            return  # it is reported as missing or damaged already
        for link, inode in inodes.items():
            if names[link] != inode.nlink:
                self._problems.add(
                    "links",
                    f"hard link {link.hex()} below tree {tree_id.hex()}",
                    f"it says {inode.nlink} names and has {names[link]}",
                    RESTORE,
                    tree_id,
                )
        for link in names.keys() - inodes.keys():
            self._complain(tree_id, f"hard link {link.hex()} resolves to no inode")

    def _names_in_scope(self, tree_id: RecordId) -> Counter[bytes]:
        """Count the names of each link id; a tree that is in the scope twice counts twice."""
        names: Counter[bytes] = Counter()
        pending = [tree_id]
        while pending:
            links = self._links.get(pending.pop())
            if links is not None:
                names.update(links.names)
                pending.extend(links.below)
        return names


def _with_links(sums: Sums, links_id: RecordId | None, inodes_of: InodesOf) -> tuple[Sums, ...]:
    """Return what the entry of a directory may say; hard-linked inodes count at their scope."""
    inodes = inodes_of(links_id) if links_id is not None else None
    if not inodes:
        return (sums,)
    linked_bytes = sum(inode.size for inode in inodes.values())
    return sums, dataclasses.replace(sums, size=sums.size + linked_bytes)


def sums_of(entries: Iterable[TreeEntry]) -> Sums:
    """Return what a directory of these entries must say."""
    entry = directory_entry(b"", 0, entries, None, mode=stat.S_IFDIR, uid=0, gid=0, mtime_ns=0)
    return Sums(entry.size, entry.count, entry.nlink, entry.has_links)


def entry_fault(entry: TreeEntry) -> str:
    """Return what is wrong with an entry by itself, its name apart; "" for nothing."""
    if entry.is_whiteout:
        return ""
    if entry.is_link:
        return "" if len(entry.content) == LINK_ID_BYTES else "is a hard link to no inode"
    if stat.S_IFMT(entry.mode) not in _KINDS:
        return f"has mode {entry.mode:o}, which no file has"
    try:
        return _content_fault(entry)
    except CorruptError as exc:
        return f"has bad content: {exc}"


def _content_fault(entry: TreeEntry) -> str:
    if entry.is_directory:
        fits = len(entry.content) in (0, ID_BYTES, 2 * ID_BYTES)
        return "" if fits else f"has {len(entry.content)} bytes of content"
    if entry.is_file and len(entry.content) != ID_BYTES:
        extents = decode_extents(entry.content)
        held = sum(extent.length for extent in extents)
        if held != entry.size:
            return f"says {entry.size} bytes; its extents make {held}"
        holes = sum(extent.length for extent in extents if extent.chunk_id == HOLE)
        if holes != entry.hole_bytes:
            return f"says {entry.hole_bytes} bytes of holes; its extents make {holes}"
        return ""
    if entry.is_symlink and len(entry.content) != entry.size:
        return f"says {entry.size} bytes; its target has {len(entry.content)}"
    return ""
