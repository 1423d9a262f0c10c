"""Does the index agree with itself, with the packs and with the trees? Changes nothing.

Counts every reference anew from the payloads of all records and from the roots; reads each
metadata record once, in the order of the packs, and of chunks only their headers (their bytes are
scrub's). Everything is compared as of one moment of the index, so daemons may go on: what they add
is not in it, and what they free stays readable, since nobody punches until the check is done.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from dedupfs.errors import CorruptError, StoreBusyError, StoreError, UsageError
from dedupfs.format.keys import (
    META_COUNTER,
    META_PUNCH,
    PackRow,
    decode_count,
    decode_free,
    split_pin_key,
)
from dedupfs.format.tree import (
    decode_snapshot,
    decode_tree,
    decode_tree_page,
    decode_view_root,
)
from dedupfs.maintenance.census import take_census
from dedupfs.maintenance.checkouts import check_checkouts
from dedupfs.maintenance.pack_check import Changed, PackCheck, Pass
from dedupfs.maintenance.problems import REINDEX, RESTORE, Problem
from dedupfs.maintenance.tree_audit import TreeAudit
from dedupfs.maintenance.uses import UseFinder
from dedupfs.model import ID_BYTES, RecordId, RecordKind, Tree, TreeEntry
from dedupfs.namespace.checkouts import CHECKOUT_PREFIX
from dedupfs.namespace.journal import journal_path, read_header
from dedupfs.namespace.rows import (
    ViewRow,
    check_name,
    decode_snapshot_row,
    decode_view_row,
    view_owner_key,
)
from dedupfs.namespace.snapshots import SEQUENCE_COUNTER
from dedupfs.namespace.views import VIEWS_DIRECTORY, find_view, view_directory, why_kept
from dedupfs.store import ReadTxn, Store, Table
from dedupfs.store.holes import PUNCH_LOCK
from dedupfs.store.openpack import PACK_COUNTER
from dedupfs.store.owner import exclusive

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with records done and records in all."""

_TRIES = 5
_VIEW_PREFIX = view_owner_key(0)[:1]


@dataclass(slots=True)
class CheckReport:
    """What was compared, and everything that does not agree."""

    records: int = 0
    chunks: int = 0
    references: int = 0
    packs: int = 0
    snapshots: int = 0
    views: int = 0
    checkouts: int = 0
    lost_bytes: int = 0
    """In record packs, neither live nor free: damage that reindex stepped over leaves that."""
    problems: list[Problem] = field(default_factory=list)
    problems_left_off: int = 0
    """How many more problems there are than ``problems`` lists."""

    @property
    def ok(self) -> bool:
        """Whether everything agrees."""
        return not self.problems


def check(store: Store, *, progress: Progress | None = None) -> CheckReport:
    """Compare the whole store with itself. See the module's text.

    Raises:
        StoreBusyError: records went again and again while they were being read, although only a
            process that ignores the lock can do that.
    """
    for _ in range(_TRIES):
        try:
            with exclusive(store.layout, store.disk, PUNCH_LOCK), store.reading() as txn:
                report = _Check(store, txn, progress).run()
        except Changed:
            continue
        log.info("check done records=%d problems=%d", report.records, len(report.problems))
        return report
    raise StoreBusyError(f"records of {store.path} go while they are read; check again later")


class _Check:
    """One attempt, on one state of the index."""

    def __init__(self, store: Store, txn: ReadTxn, progress: Progress | None) -> None:
        self._store = store
        self._txn = txn
        self._progress = progress
        self._report = CheckReport()
        self._pass = Pass(store, txn)
        self._problems = self._pass.problems
        self._counter = self._pass.counter
        self._trees = TreeAudit(self._problems)
        self._inodes: dict[RecordId, dict[bytes, TreeEntry] | None] = {}

    def run(self) -> CheckReport:
        census = take_census(self._txn)
        for key, what in census.bad_rows:
            self._problems.add("row", f"index row {key.hex()}", what)
        self._report.records = census.records
        self._report.packs = len(census.packs)
        self._take_roots(census.packs)
        packs = PackCheck(self._pass, census, self._take)
        done = 0
        for pack in sorted({*census.packs, *census.places, *census.free}):
            done += packs.run(pack)
            if self._progress is not None:
                self._progress(done, census.records)
        self._report.chunks = packs.chunks
        self._report.lost_bytes = packs.lost_bytes
        self._compare_trees()
        self._compare_references()
        self._compare_dead()
        self._compare_free()
        self._compare_counters(max(census.packs, default=0))
        self._report.problems_left_off = self._problems.left_off
        self._report.problems = self._with_uses()
        return self._report

    def _with_uses(self) -> list[Problem]:
        bad = self._problems.record_ids()
        if not bad:
            return self._problems.found
        uses = UseFinder(self._store, bad).find()
        named = {record_id.hex(): tuple(map(str, found)) for record_id, found in uses.items()}
        return [
            dataclasses.replace(problem, uses=named.get(problem.record_id, ()))
            for problem in self._problems.found
        ]

    # --- facts --------------------------------------------------------------------------------

    def _take_roots(self, packs: dict[int, PackRow]) -> None:
        owners: set[bytes] = set()
        for row in packs.values():
            if row.chunk_table is not None:
                self._counter.add(row.chunk_table, RecordKind.CHUNK_TABLE)
        for key, value in self._txn.scan(Table.SNAPSHOTS):
            self._report.snapshots += 1
            try:
                self._take_snapshot(key, value)
            except CorruptError as exc:
                self._problems.add("row", f"snapshot {key.decode(errors='replace')}", str(exc))
        for key, value in self._txn.scan(Table.VIEWS):
            self._report.views += 1
            try:
                view = decode_view_row(value)
            except CorruptError as exc:
                self._problems.add("row", f"view {key.decode(errors='replace')}", str(exc))
                continue
            self._counter.add(view.root_id, RecordKind.VIEW_ROOT)
            self._check_journal(key, value, view)
            owners.add(view_owner_key(view.view_id))
        self._check_lost_views()
        self._take_pins(owners)

    def _check_lost_views(self) -> None:
        """A view with files that are not for gc needs a row."""
        for name in self._store.disk.listdir(self._store.path / VIEWS_DIRECTORY):
            try:
                check_name(name, "view")
                if find_view(self._store, name) is not None:
                    continue
            except (UsageError, CorruptError):
                continue  # not a view's directory; or its row is bad, which was told
            why = why_kept(self._store, name)
            if why and find_view(self._store, name) is None:  # it may just have been made
                self._problems.add("view", f"view {name}", f"its files have no row: {why}")

    def _take_pins(self, view_owners: set[bytes]) -> None:
        checkout_owners: set[bytes] = set()
        for key, value in self._txn.scan(Table.PINS):
            try:
                owner, record_id = split_pin_key(key)
                self._counter.add_pins(record_id, decode_count(value))
            except CorruptError as exc:
                self._problems.add("row", f"pin {key.hex()}", str(exc))
                continue
            if owner.startswith(_VIEW_PREFIX) and owner not in view_owners:
                what = "a view that is no more holds it, so gc never frees it"
                self._problems.add("pin", f"record {record_id.hex()}", what)
            elif owner.startswith(CHECKOUT_PREFIX):
                checkout_owners.add(owner)
        found = check_checkouts(self._store, checkout_owners, self._problems)
        self._report.checkouts = found

    def _check_journal(self, key: bytes, value: bytes, view: ViewRow) -> None:
        """A view needs the journal that starts from its root."""
        path = journal_path(view_directory(self._store.path, view.name), view.generation)
        try:
            header = read_header(path)
            wanted = (view.view_id, view.generation, view.root_id)
            if (header.view_id, header.generation, header.root_id) == wanted:
                return
            what = f"{path} belongs to generation {header.generation} of view {header.view_id}"
        except (StoreError, OSError) as exc:
            what = f"{path} cannot be read: {exc}"
        with self._store.reading() as now:
            if now.get(Table.VIEWS, key) != value:
                return  # it was folded or removed meanwhile
        self._problems.add("journal", f"view {view.name}", what, f"{REINDEX}, up to its last fold")

    def _take_snapshot(self, key: bytes, value: bytes) -> None:
        info, record_id = decode_snapshot_row(value)
        self._counter.add(record_id, RecordKind.SNAPSHOT)
        payload = self._pass.payload(record_id, RecordKind.SNAPSHOT)
        if payload is not None and payload != value[ID_BYTES:]:
            self._problems.add(
                "snapshot", f"snapshot {info.name}", "its row differs from its record"
            )
        if key != info.name.encode():
            self._problems.add("snapshot", f"snapshot {key!r}", f"its row is that of {info.name}")

    def _take(self, record_id: RecordId, kind: RecordKind, payload: bytes) -> None:
        """Take the facts of one metadata record."""
        self._counter.add_payload(kind, payload)
        match kind:
            case RecordKind.TREE:
                self._trees.take_tree(record_id, decode_tree(payload))
            case RecordKind.RECIPE:
                self._trees.take_recipe(record_id, payload)
            case RecordKind.RECIPE_PAGE:
                self._trees.take_recipe_page(record_id, payload)
            case RecordKind.SNAPSHOT:
                info = decode_snapshot(payload)
                if not info.deleted:
                    self._trees.take_root(f"snapshot {info.name}", info.root)
            case RecordKind.VIEW_ROOT:
                root = decode_view_root(payload)
                self._trees.take_root(f"view {root.name}", root.root)

    # --- comparing ----------------------------------------------------------------------------

    def _compare_trees(self) -> None:
        for record_id, tree in list(self._trees.paged_trees()):
            pages = self._pages(tree)
            if pages is not None:
                self._trees.take_pages(record_id, tree, pages)
        self._trees.finish(self._inodes_of, complete=not self._pass.unread)

    def _pages(self, tree: Tree) -> list[Sequence[TreeEntry]] | None:
        pages: list[Sequence[TreeEntry]] = []
        for listed in tree.pages:
            payload = self._pass.payload(listed.page_id, RecordKind.TREE_PAGE)
            if payload is None:
                return None  # it is reported as missing or damaged
            pages.append(decode_tree_page(payload))
        return pages

    def _inodes_of(self, links_id: RecordId) -> dict[bytes, TreeEntry] | None:
        if links_id not in self._inodes:
            self._inodes[links_id] = self._read_inodes(links_id)
        return self._inodes[links_id]

    def _read_inodes(self, links_id: RecordId) -> dict[bytes, TreeEntry] | None:
        payload = self._pass.payload(links_id, RecordKind.TREE)
        if payload is None:
            return None
        tree = decode_tree(payload)
        pages = self._pages(tree)
        if pages is None:
            return None
        entries = [*tree.entries, *(entry for page in pages for entry in page)]
        return {entry.name: entry for entry in entries}

    def _compare_references(self) -> None:
        for part in self._counter.parts():
            targets = self._counter.targets(part)
            self._report.references += sum(target.count for target in targets.values())
            for key, value in self._txn.scan(Table.RECORDS, prefix=bytes([part])):
                self._pass.compare(RecordId(key), value, targets.pop(RecordId(key), None))
            for record_id, target in targets.items():
                self._problems.add(
                    "missing",
                    f"record {record_id.hex()}",
                    f"it is referred to {target.count} times and not in the index",
                    f"{REINDEX}; if it is still missing, {RESTORE}",
                    record_id,
                )

    def _compare_dead(self) -> None:
        """Every row of 0 references was looked up in DEAD; is there more in DEAD than those?"""
        if self._txn.count(Table.DEAD) == self._pass.dead_rows:
            return
        for key, _ in self._txn.scan(Table.DEAD):
            row = self._txn.get(Table.RECORDS, key)
            if row is None or self._pass.references_in(row):
                self._problems.add(
                    "dead", f"record {key.hex()}", "it is listed as dead and is not", REINDEX, key
                )

    def _compare_free(self) -> None:
        """Every free range that still takes blocks must be listed for punching."""
        for key, row in self._txn.scan(Table.FREE):
            try:
                pack, start, _stop, punched = decode_free(key, row)
            except CorruptError:
                continue  # reported by the census
            if not punched and self._txn.get(Table.META, META_PUNCH + key) is None:
                what = "a free range is not listed for punching, so its blocks never come back"
                self._problems.add("free-range", f"pack {pack} at {start}", what)

    def _compare_counters(self, pack_max: int) -> None:
        sequence_max = max(self._sequences(), default=0)
        for name, least in ((PACK_COUNTER, pack_max), (SEQUENCE_COUNTER, sequence_max)):
            row = self._txn.get(Table.META, META_COUNTER + name.encode())
            if least and (row is None or decode_count(row) < least):
                self._problems.add(
                    "counter", f"counter {name!r}", f"it is below {least}, which is in use"
                )

    def _sequences(self) -> Iterator[int]:
        for _, value in self._txn.scan(Table.SNAPSHOTS):
            try:
                yield decode_snapshot_row(value)[0].sequence
            except CorruptError:
                continue  # reported with its row
