"""What a view is in memory: directories, changed files, numbers; who has which, and what stat says.

Names and attributes change by edits alone (journaling.py, applying.py), bytes by what an open file
takes over. Knows no requests (requests.py) and no folding.
"""

import stat
from collections.abc import Sequence
from pathlib import Path

from dedupfs.errors import MissingRecordError, NotADirectoryNameError, StaleError, StoreFullError
from dedupfs.format.journal import Place
from dedupfs.model import HOLE, LINK_MODE, Attr, RecordId, TreeEntry
from dedupfs.namespace.applying import apply
from dedupfs.namespace.directory import (
    CATALOG_SLOTS_START,
    CatalogDirectory,
    Directory,
    keeps_links,
)
from dedupfs.namespace.entered import EnteredSnapshots
from dedupfs.namespace.inodes import (
    LINKS_SLOT,
    ROOT_INODE,
    ROOT_NUMBER,
    SLOT_BITS,
    SLOT_MAX,
    InodeTable,
    directory_inode,
    directory_number,
    is_directory_inode,
)
from dedupfs.namespace.journal import Journal
from dedupfs.namespace.journaling import record
from dedupfs.namespace.openfile import OpenFile
from dedupfs.namespace.rows import view_owner_key
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.staging import Staging
from dedupfs.namespace.trees import TreeReader, links_id_of, tree_id_of
from dedupfs.store.store import Store
from dedupfs.store.syncing import Syncer

DIRECTORY_BYTES = 4096
"""st_size of every directory; what a directory stores is counted in the store."""
BLOCK_BYTES = 512


class ViewState:
    """The mutable heart of a view. One thread; every method leaves it consistent."""

    def __init__(
        self,
        store: Store,
        root: TreeEntry,
        *,
        catalog: bool,
        view_id: int | None,
        next_number: int,
        directory: Path | None,
        view_name: str = "",
    ) -> None:
        """``view_id`` and ``directory`` None: read-only, nothing is written down."""
        self.store = store
        self.trees = TreeReader(store)
        self.catalog = SnapshotCatalog(store)
        self.view_id = view_id
        self.path = directory
        self.view_name = view_name
        self.inodes = InodeTable(store, view_id, next_number)
        self.journal: Journal | None = None
        self.kernel_keeps_times = False
        """Writes come from the kernel's page cache, later than they were made: it says when that
        was (setattr), and so they change no times themselves."""
        self.next_staging = 1
        self.files: dict[int, OpenFile] = {}
        self.nameless: dict[int, TreeEntry] = {}
        """Special files and symbolic links without a name that the kernel has not forgotten; such
        regular files are in ``files``, as orphans."""
        self.uncapped: int | None = None
        """The inode whose capability was removed by the request before this one."""
        self.entered = EnteredSnapshots()
        self.leased: set[RecordId] = set()
        self.held_back: set[RecordId] = set()
        """Trees that ``hold`` has pinned since the last fold: of one of them come many clones."""
        places = self.inodes.places_of(ROOT_NUMBER)
        if catalog:
            self.root: Directory = CatalogDirectory(
                self.trees, ROOT_NUMBER, root, places, self.catalog
            )
        else:
            self.root = Directory(self.trees, ROOT_NUMBER, root, None, places)
        self.directories: dict[int, Directory] = {ROOT_NUMBER: self.root}
        self.edit_count = 0
        self.owned: set[int] = set()
        """Directories that are known not to be a snapshot's any more (journaling.py)."""
        self.held: set[int] = set()
        """Open files without a name whose chunks the last fold pinned; 0: those of dead handles,
        and what was pinned since, to which nothing refers if a full disk refused the rest."""
        self.obsolete: list[Staging] = []
        """Staging files that only the present journal still speaks of: deleted by the next fold,
        since a power cut may take back the journal's last records."""
        names = directory or store.path
        self.names = Syncer(names, lambda: store.disk.fsync_dir(names))
        """Of the view's own files; a daemon before this one may not have synced them."""
        if directory is not None:
            self.names.changed()

    @property
    def is_catalog(self) -> bool:
        """Whether the root lists the store's snapshots."""
        return isinstance(self.root, CatalogDirectory)

    # --- finding things --------------------------------------------------------------------------

    def directory(self, inode: int) -> Directory:
        """Return the directory that has this inode number.

        Raises:
            StaleError: nothing has. NotADirectoryNameError: something else has.
        """
        number = directory_number(inode)
        if is_directory_inode(inode):
            found = self.directories.get(number)
            if found is not None:
                return found
        holder, entry = self.locate(inode)
        if not entry.is_directory:
            raise NotADirectoryNameError(f"inode {inode} is no directory")
        return self.child(holder, entry)

    def locate(self, inode: int) -> tuple[Directory, TreeEntry]:
        """Return the directory that holds an inode (not the root), and its entry there.

        Raises:
            StaleError: nothing has this number.
        """
        slot = inode & LINKS_SLOT
        if slot and inode != ROOT_INODE:  # most never moved: no look into the index for them
            first = self.directories.get(inode >> SLOT_BITS)
            if first is not None and slot not in first.places:
                found = first.by_slot(slot)
                if found is not None and found.mode != LINK_MODE:
                    return first, found
        number, slot = self.inodes.home_of(inode)
        if number == directory_number(inode) and is_directory_inode(inode):
            raise StaleError(f"inode {inode} is its own home")
        holder = self.directories.get(number) or self._find_directory(number)
        entry = holder.links_entry() if slot == LINKS_SLOT else holder.by_slot(slot)
        if entry is None and isinstance(holder, CatalogDirectory) and not holder.stands_in(slot):
            entry = self.entered.find(slot)  # a snapshot that another process has removed
        if entry is None:
            raise StaleError(f"inode {inode} is gone")
        return holder, entry

    def _find_directory(self, number: int) -> Directory:
        """Return a directory that is not in memory, nor maybe any above it but the root.

        Not by recursion: it may lie deeper than Python's stack.

        Raises:
            StaleError: nothing has this number.
        """
        way: dict[int, None] = {}
        while number not in self.directories:
            if number in way:
                raise StaleError(f"directory {number} lies in itself")
            way[number] = None
            number = self.inodes.home_of(directory_inode(number))[0]
        found = self.directories[number]
        for below in reversed(way):
            found = self.directory(directory_inode(below))
        return found

    def child(self, parent: Directory, entry: TreeEntry) -> Directory:
        """Return the directory that ``entry`` of ``parent`` stands for."""
        number = directory_number(self.inode_of(parent, entry))
        found = self.directories.get(number)
        if found is not None:
            return found
        from_catalog = isinstance(parent, CatalogDirectory)
        if from_catalog and entry.slot < CATALOG_SLOTS_START:
            self.lease(entry)
            self.entered.add(entry)
        made = Directory(
            self.trees,
            number,
            entry,
            parent,
            self.inodes.places_of(number),
            is_scope=from_catalog and keeps_links(entry),
        )
        self.directories[number] = made
        return made

    def links(self, scope: Directory) -> Directory:
        """Return the hidden directory of a scope's hard-linked inodes."""
        return self.child(scope, scope.links_entry())

    def resolve(self, holder: Directory, entry: TreeEntry) -> tuple[Directory, TreeEntry]:
        """Return where the inode's own entry is: elsewhere only when it is hard-linked.

        Raises:
            StaleError: the link leads nowhere (``check`` tells such trees).
        """
        if not entry.is_link:
            return holder, entry
        links = self.links(holder.scope)
        found = links.find(entry.content)
        if found is None:
            raise StaleError(f"hard link {entry.name!r} leads nowhere")
        return links, found

    def has_links(self, directory: Directory) -> bool:
        """Whether hard-linked names may exist below (those of the last fold still count)."""
        children: dict[int, list[Directory]] = {}
        for child in self.directories.values():
            if child.parent is not None and not child.is_links:
                children.setdefault(child.parent.number, []).append(child)
        waiting = [directory]
        while waiting:
            found = waiting.pop()
            changed = found.changes.values()
            if found.entry.has_links or any(e is not None and e.is_link for e in changed):
                return True
            waiting += children.get(found.number, ())
        return False

    def inode_of(self, holder: Directory, entry: TreeEntry) -> int:
        """Return the inode number of an entry, giving a directory its own when it has none."""
        if entry.mode == LINK_MODE:
            holder, entry = self.resolve(holder, entry)
        slot = entry.slot
        if slot in holder.places:
            return holder.places[slot]
        if slot <= SLOT_MAX and not stat.S_ISDIR(entry.mode):
            return holder.number << SLOT_BITS | slot
        inode = directory_inode(self.inodes.new_number())
        place = Place(inode, holder.number, entry.slot)
        try:
            record(self, 0, [place])
        except StoreFullError:  # it can be looked at all the same; the first edit below says it
            apply(self, place, 0)
        return inode

    def entry_of(self, inode: int) -> TreeEntry:
        """Return the entry of an inode as it is now.

        Raises:
            StaleError: nothing has this number.
        """
        file = self.files.get(inode)
        if file is not None:
            return file.current_entry()
        if inode == ROOT_INODE or is_directory_inode(inode):
            directory = self.directories.get(directory_number(inode))
            if directory is not None and directory.inode == inode:
                return directory.entry
        nameless = self.nameless.get(inode)
        return self.locate(inode)[1] if nameless is None else nameless

    def named_entry(self, inode: int) -> TreeEntry:
        """Return the entry of an inode for an edit: its bytes are as settled, the rest as now."""
        file = self.files.get(inode)
        return self.entry_of(inode) if file is None else file.named_entry()

    # --- attributes ------------------------------------------------------------------------------

    def attr(self, inode: int) -> Attr:
        """Return what stat(2) answers for ``inode``."""
        return self.attr_as(inode, self.entry_of(inode))

    def attr_as(self, inode: int, entry: TreeEntry) -> Attr:
        """Return what stat(2) answers for ``inode``, whose entry is known to be this one."""
        file = self.files.get(inode)
        if file is not None:
            return self._attr(inode, entry, 0 if file.orphan else None)
        if inode == ROOT_INODE:
            return self._attr(inode, entry, self.root.nlink)
        directory = self.directories.get(directory_number(inode)) if entry.is_directory else None
        return self._attr(inode, entry, 0 if directory and directory.removed else None)

    def attr_of(self, holder: Directory, entry: TreeEntry) -> Attr:
        """Return what stat(2) answers for an entry of ``holder``."""
        if entry.mode == LINK_MODE:
            holder, entry = self.resolve(holder, entry)
        inode = self.inode_of(holder, entry)
        file = self.files.get(inode)
        if file is not None:
            entry = file.current_entry()
        elif entry.is_directory:
            directory = self.directories.get(directory_number(inode))
            if directory is not None:
                entry = directory.entry
        return self._attr(inode, entry, None)

    @staticmethod
    def _attr(inode: int, entry: TreeEntry, nlink: int | None) -> Attr:
        if stat.S_ISDIR(entry.mode):
            size, blocks = DIRECTORY_BYTES, 0
        else:
            size = entry.size
            blocks = -(-(size - entry.hole_bytes) // BLOCK_BYTES)
        return Attr(
            inode,
            entry.mode,
            entry.nlink if nlink is None else nlink,
            entry.uid,
            entry.gid,
            entry.rdev,
            size,
            blocks,
            entry.accessed_ns,
            entry.mtime_ns,
            entry.ctime_ns or entry.mtime_ns,
        )

    # --- files that are open or changed ----------------------------------------------------------

    def keep_nameless(self, inode: int, entry: TreeEntry) -> None:
        """Keep an inode whose last name is gone: a descriptor may still lead to it (O_PATH, too).

        Until the kernel forgets it, which it does at once where none does (``HandleTable.forget``).
        """
        file = self.files.get(inode)
        if file is None and not entry.is_file:
            self.nameless[inode] = entry
            return
        if file is None:
            file = self.open_new(inode, entry)
        file.mtime_ns, file.ctime_ns = entry.mtime_ns, entry.ctime_ns
        file.entry = entry
        file.orphan = True

    def discard(self, file: OpenFile) -> None:
        """Drop a changed file that has no name and no handle any more."""
        self.files.pop(file.inode, None)
        self.obsolete += file.confirm()
        if file.staging is not None:
            self.obsolete.append(file.staging)

    def open_file(self, inode: int) -> OpenFile:
        """Return the object of a regular file, making it when there is none yet.

        Raises:
            StaleError: nothing has this number.
        """
        file = self.files.get(inode)
        return self.open_new(inode, self.locate(inode)[1]) if file is None else file

    def open_new(self, inode: int, entry: TreeEntry) -> OpenFile:
        """Make the object of a regular file that has none."""
        file = self.files[inode] = OpenFile(self.store, inode, entry)
        return file

    def open_ids(self, inode: int) -> list[RecordId]:
        """Return the ids of a regular file's settled chunks, holes left out."""
        file = self.files.get(inode) or OpenFile(self.store, inode, self.locate(inode)[1])
        return [chunk_id for chunk_id in file.recipe.ids if chunk_id != HOLE]

    def new_staging(self) -> Staging:
        """Make a new staging file in the view's directory."""
        assert self.path is not None
        if not (self.names.is_synced(1) or self.names.failed):
            # A number that a daemon before this one gave up may be given again, and a power cut
            # must not bring back the file that had it.
            self.names.sync(self.names.changes)
        number = self.next_staging
        self.next_staging += 1
        staging = Staging(self.store.disk, self.path, number)
        self.names.changed()
        return staging

    def sync_journal(self) -> None:
        """Make what was journaled durable: before anything is given up that it speaks of."""
        if self.journal is not None:
            self.journal.sync()

    # --- what is held back from gc ---------------------------------------------------------------

    def lease(self, entry: TreeEntry) -> None:
        """Hold a snapshot's trees back from gc for as long as this process lives."""
        wanted = [tree_id_of(entry), links_id_of(entry)]
        missing = [i for i in wanted if i is not None and i not in self.leased]
        if missing:
            with self.store.transaction() as txn:
                for record_id in missing:
                    txn.pin(self.store.owner, record_id)
            self.leased.update(missing)

    def hold(self, entry: TreeEntry) -> None:
        """Hold the trees of a snapshot back from gc until the next fold refers to them."""
        wanted = [tree_id_of(entry), links_id_of(entry)]
        missing = [i for i in wanted if i is not None and i not in self.held_back]
        if missing and not self.pin(missing):
            raise StaleError(f"snapshot {entry.name!r} is gone")
        self.held_back.update(missing)

    def pin(self, record_ids: Sequence[RecordId]) -> bool:
        """Hold records back from gc until the next fold; False when one is gone already."""
        assert self.view_id is not None
        try:
            with self.store.transaction() as txn:
                for record_id in record_ids:
                    txn.pin(view_owner_key(self.view_id), record_id)
        except MissingRecordError:
            return False
        self.held.add(0)
        return True
