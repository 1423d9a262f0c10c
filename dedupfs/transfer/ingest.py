"""Directory -> snapshot. The one place that orders the steps of an import.

Two passes over the source: the first counts and finds hard links, the second stores. Unchanged
files are taken over from the last import without being read. Nothing is visible before the one
transaction that adds the snapshot; until then everything stored is kept from gc by pins that die
with this process. Source: docs/architecture.md, "Import".
"""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.errors import MissingRecordError, SourceError, StoreError, UsageError
from dedupfs.format.tree import entry_references
from dedupfs.interrupts import Held
from dedupfs.model import HOLE, Extent, RecordId, SnapshotInfo, TreeEntry
from dedupfs.namespace.contents import hole_bytes, store_content, total_bytes
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store, Table
from dedupfs.store.limits import StoreLimit
from dedupfs.transfer.builder import TreeBuilder, object_entry
from dedupfs.transfer.filedata import FileStorer
from dedupfs.transfer.gather import Gatherer, Item
from dedupfs.transfer.report import IngestReport, OnProblem, OnProgress, Problems, Progress, shown
from dedupfs.transfer.scan import Scan, scan
from dedupfs.transfer.selection import Selection, Selector
from dedupfs.transfer.sources import (
    NO_STAMP,
    KnownDirectory,
    KnownListings,
    KnownSources,
    SourceRow,
    child_key,
    sibling_key,
    top_key,
)
from dedupfs.transfer.verbatim import remove_stale_files
from dedupfs.transfer.walk import Step, list_names

ATTEMPTS_MAX = 3
"""How often an import starts over when gc freed a chunk between its look-up and the commit."""


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """How a directory is imported."""

    one_file_system: bool = False
    reread: bool = False
    selection: Selection = field(default_factory=Selection)
    """What of the directory is imported."""
    created_ns: int | None = None
    """The time of the snapshot, if it is not now."""
    racy_ns: int = 2_000_000_000
    """A file touched this shortly before the import is read again by the next one: its times are
    too coarse to tell whether it was written once more."""
    pending_bytes_max: int = 1 << 30
    """After this many bytes what was stored so far is committed, held by pins alone."""
    adopt: bool = False
    """Large files on the store's file system become packs as they are (``transfer/adoption``)."""


def ingest_tree(
    store: Store,
    directory: Path,
    name: str,
    *,
    tags: Mapping[str, str] | None = None,
    progress: OnProgress | None = None,
    on_error: OnProblem | None = None,
    options: IngestOptions | None = None,
) -> IngestReport:
    """Make the snapshot ``name`` of ``directory``.

    What cannot be read is reported (``on_error`` at once, and in the result) and left out.
    Ctrl-C ends it between two files, or two blocks of a large one.

    Raises:
        UsageError, ExistsError: the name, or the directory has to do with the store's; nothing
            was read. SourceError: the directory itself cannot be read.
        QuotaError: the store is at its limit. StoreError: it failed; no snapshot was made.
    """
    with Held() as held:
        return _ingest(store, directory, name, tags, progress, on_error, options, held)


def _ingest(
    store: Store,
    directory: Path,
    name: str,
    tags: Mapping[str, str] | None,
    progress: OnProgress | None,
    on_error: OnProblem | None,
    options: IngestOptions | None,
    held: Held,
) -> IngestReport:
    started = time.monotonic()
    options = options or IngestOptions()
    SnapshotCatalog(store).require_free(name)
    source = Path(os.path.realpath(directory))
    _refuse_overlap(store, source)
    remove_stale_files(store)
    top_fd = _open_source(source)
    try:
        found = scan(
            top_fd,
            os.stat(store.path),
            one_file_system=options.one_file_system,
            known=None if options.reread else KnownListings(store, os.fsencode(source)),
            selector=selector_of(options, source, Problems([], None)),
            on_directory=held.point,
        )
        for attempt in range(1, ATTEMPTS_MAX + 1):
            run = _Import(store, source, found, progress, on_error, options, held)
            try:
                run.read(top_fd)
                run.report.snapshot = run.commit(name, tags or {})
                break
            except MissingRecordError:
                run.release()  # what was put is used again
                if attempt == ATTEMPTS_MAX:
                    raise
            except BaseException:
                store.drop_pending()
                run.release()
                raise
    finally:
        os.close(top_fd)
    run.report.seconds = time.monotonic() - started
    return run.report


def selector_of(options: IngestOptions, source: Path, problems: Problems) -> Selector | None:
    """Return what selects names below ``source``; None when nothing is left out."""
    return Selector(options.selection, source, problems) if options.selection else None


def _refuse_overlap(store: Store, source: Path) -> None:
    inside = Path(os.path.realpath(store.path))
    if source.is_relative_to(inside):
        raise UsageError(f"{source} lies in the store {store.path}: it cannot be imported into it")
    if inside.is_relative_to(source):
        raise UsageError(f"the store {store.path} lies in {source}: it cannot contain itself")


def _open_source(source: Path) -> int:
    try:
        return os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise SourceError(f"cannot import {source}: {exc.strerror}") from exc


class _Import:
    """One attempt at one import."""

    def __init__(
        self,
        store: Store,
        source: Path,
        found: Scan,
        progress: OnProgress | None,
        on_error: OnProblem | None,
        options: IngestOptions,
        held: Held,
    ) -> None:
        self.report = IngestReport()
        self._store = store
        self._source = os.fsencode(source)
        self._found = found
        self._options = options
        self._problems = Problems(self.report.problems, on_error)
        self._on_progress = progress
        self._held = held
        self._progress = Progress(found.files, found.size_bytes)
        self._storer = FileStorer(store, self._block_stored, adopt=options.adopt)
        self._limit = StoreLimit(store)
        self._limit.reload()
        self._pending_bytes = 0
        self._pinned_extents = 0
        self._has_pins = False
        self._stale_keys: list[bytes] = []
        self._known = KnownSources(store, TreeReader(store), self._source, *self._hold_last())
        self._builder = TreeBuilder(store, self._known.link_ids())

    def _hold_last(self) -> tuple[bytes, SourceRow | None]:
        """Pin what the last import of this directory made, or of a sibling if there was none.

        Return the key of its row and the row; none if there is nothing any more.
        """
        key = top_key(self._source)
        if self._options.reread:
            return key, None
        with self._store.reading() as txn:
            row = txn.get(Table.SOURCES, key)
            if row is None:
                key = txn.get(Table.SOURCES, sibling_key(self._source)) or key
                row = txn.get(Table.SOURCES, key)
        if row is None:
            return key, None
        last = SourceRow(row)
        try:
            self._pin([last.tree_id] if last.links_id is None else [last.tree_id, last.links_id])
        except MissingRecordError:
            return key, None
        return key, last

    def _pin(self, record_ids: Iterable[RecordId]) -> None:
        with self._store.transaction() as txn:
            for record_id in record_ids:
                txn.pin(self._store.owner, record_id)
        self._has_pins = True

    def read(self, top_fd: int) -> None:
        """Go through the source and put everything; the root is complete afterwards."""
        now_ns = time.time_ns()
        for path in self._found.missing:
            self._problems.add(path, "left out: there is no such file")
        source = Path(os.fsdecode(self._source))
        selector = selector_of(self._options, source, self._problems)
        gatherer = Gatherer(
            top_fd,
            self._found,
            self._known,
            now_ns - self._options.racy_ns,
            self._problems,
            one_file_system=self._options.one_file_system,
            names=list_names if selector is None else selector.names,
        )
        items = gatherer.items_ahead()
        waiting: Item | None = None
        try:
            for item in items:
                if item.fd >= 0:
                    self._storer.begin(item.fd, item.status)
                waiting, due = item, waiting
                if due is not None:
                    self._take(due)
            if waiting is not None:
                self._take(waiting)
        finally:
            self._storer.close()
            if waiting is not None:
                waiting.close()
            items.close()

    def _take(self, item: Item) -> None:
        if self._pending_bytes >= self._options.pending_bytes_max:
            self._pin_pending()
        if item.step is Step.ENTER:
            assert item.known is not None
            self._builder.enter(item.name, item.status, item.xattrs, item.known.key, item.stamp)
            self.report.directories += 1
        elif item.step is Step.LEAVE:
            assert item.known is not None
            self._forget_missing(item.known)
            self._builder.leave()
        elif item.step is Step.PASS:
            self._take_unchanged(item)
        else:
            try:
                self._take_object(item)
            finally:
                item.close()
            self._progress.files_done += 1
            self._tell(item)

    def _take_unchanged(self, item: Item) -> None:
        """Take over a directory as the last import made it, with all that is below."""
        assert item.entry is not None
        assert item.below is not None
        below = item.below
        self._builder.add(item.entry, item.stamp)
        self.report.directories += below.directories
        self.report.files += below.files
        self.report.files_unchanged += below.files
        self.report.logical_bytes += below.size_bytes
        self._progress.files_done += below.files
        self._progress.bytes_done += below.size_bytes
        self._tell(item)

    def _forget_missing(self, known: KnownDirectory) -> None:
        """Mark the rows of directories that were here last time and are gone."""
        names = self._builder.directory_names()
        for name, (entry, _) in known.entries.items():
            if entry.is_directory and name not in names:
                self._stale_keys += self._known.keys_below(child_key(known.key, name), entry)

    def _take_object(self, item: Item) -> None:
        if item.fd >= 0:
            item.entry = self._store_file(item)
            if item.entry is None:
                return
        link_id = None
        if item.link_key is not None:
            link_id = self._builder.links.find(item.link_key)
            if link_id is None and item.entry is None:
                self._problems.add(item.path, "left out: its other name could not be read")
                return
        if item.entry is not None:
            self.report.logical_bytes += item.entry.size if item.entry.is_file else 0
            self.report.files_unchanged += item.is_unchanged
        if item.is_unchanged:
            self._progress.bytes_done += item.status.st_size
        self.report.files += 1
        if item.link_key is None:
            assert item.entry is not None
            self._builder.add(item.entry, item.stamp)
            return
        if link_id is None:
            assert item.entry is not None
            link_id = self._builder.links.add(item.link_key, item.entry, item.known_link_id)
        self._builder.add(self._builder.links.name_entry(item.name, link_id), item.stamp)

    def _store_file(self, item: Item) -> TreeEntry | None:
        """Read and store a regular file; None when it could not be read."""
        bytes_before = self._progress.bytes_done
        self._pinned_extents = 0
        try:
            stored = self._storer.put(item.fd, item.status)
        except OSError as exc:
            self._problems.add_os_error(item.path, "left out: cannot be read", exc)
            return None
        finally:
            self._progress.bytes_done = bytes_before + item.status.st_size
        if not stored.is_stable:
            self._problems.add(item.path, "changed while it was read, twice; kept as last read")
            item.stamp = NO_STAMP
        content = store_content(self._store, stored.extents)
        return object_entry(
            item.name,
            stored.status,
            item.xattrs,
            content,
            total_bytes(stored.extents),
            hole_bytes(stored.extents),
        )

    def _block_stored(self, length: int, extents: Sequence[Extent]) -> None:
        self.report.bytes_read += length
        self._progress.bytes_done += length
        self._pending_bytes += length
        self._limit.added(length)
        if extents and self._pending_bytes >= self._options.pending_bytes_max:
            loose = [e.chunk_id for e in extents[self._pinned_extents :] if e.chunk_id != HOLE]
            self._pinned_extents = len(extents)
            self._pin_pending(loose)
        self._tell(None)

    def _tell(self, item: Item | None) -> None:
        self._held.point()
        if self._on_progress is not None:
            if item is not None:
                self._progress.path = item.path
            self._on_progress(self._progress)

    def _pin_pending(self, loose: Iterable[RecordId] = ()) -> None:
        """Commit what was put so far, so that memory stays bounded; pins keep it from gc."""
        self._pin([*loose, *self._builder.unpinned()])
        self._pending_bytes = 0

    def commit(self, name: str, tags: Mapping[str, str]) -> SnapshotInfo:
        """Add the snapshot, and what the next import of this directory will want to know."""
        root = self._builder.root
        assert root is not None
        self.report.cloned, self.report.linked = self._storer.cloned, self._storer.linked
        self._pin(entry_references(root))
        info = SnapshotCatalog(self._store).add(
            name,
            root,
            tags=tags,
            source=shown(self._source),
            created_ns=self._options.created_ns,
        )
        with self._store.transaction() as txn:
            for key, row in self._builder.rows.items():
                if not row:
                    txn.delete(Table.SOURCES, key)
                elif txn.get(Table.SOURCES, key) != row:
                    txn.put(Table.SOURCES, key, row)
            for key in self._stale_keys:
                txn.delete(Table.SOURCES, key)
            sibling, key = sibling_key(self._source), top_key(self._source)
            if txn.get(Table.SOURCES, sibling) != key:
                txn.put(Table.SOURCES, sibling, key)
            txn.release_pins(self._store.owner)
        return info

    def release(self) -> None:
        """Let go of what was committed in between; it is nobody's then, and gc frees it."""
        if self._has_pins:
            with suppress(StoreError), self._store.transaction() as txn:
                txn.release_pins(self._store.owner)
