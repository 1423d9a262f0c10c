"""``dedupfs check --repair``: make whole what can be made whole, while nobody uses the store.

In this order, each step only where something is wrong: dedupfs.json from its copy in the index;
damaged records from their bytes, where the store has them (heal.py); the index, reference counts
and free ranges among it, from packs and journals (reindex.py), beside the old one, which stays
until the new one takes its place; what dead processes left; once more damaged records, and then
the index, for what only the new index told of. Then the store is checked again, and what that finds
is what could not be repaired. No file is ever replaced or dropped: that is ``dedupfs rm``'s.
"""

import logging
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.errors import CorruptError, FormatVersionError, StoreError, UsageError
from dedupfs.maintenance.check import check
from dedupfs.maintenance.heal import heal
from dedupfs.maintenance.leftovers import remove_leftovers
from dedupfs.maintenance.liveness import require_unused
from dedupfs.maintenance.problems import REINDEX, Problem
from dedupfs.maintenance.reindex import (
    NEW,
    OLD,
    ReindexReport,
    alone,
    rebuild_index,
    remove_tree,
)
from dedupfs.model import RecordId, StoreConfig
from dedupfs.store import Disk, RealDisk, Store, Table
from dedupfs.store.db import Database
from dedupfs.store.layout import Layout, read_config, require_reachable, write_config
from dedupfs.store.settings import save_config, saved_config
from dedupfs.store.space import release_dead_owners

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_REBUILT = frozenset(
    {
        "chunk-table",
        "counter",
        "dead",
        "free-range",
        "index",
        "journal",
        "live-bytes",
        "location",
        "missing",
        "overlap",
        "pack",
        "pin",
        "references",
        "row",
        "snapshot",
        "view",
    }
)
"""Codes of problems that a new index may be without."""
_GARBAGE = "garbage"
"""Damage that nothing refers to any more: a new index is without that, too."""


@dataclass(slots=True)
class RepairReport:
    """What was wrong, what was done about it (or would be), and what is left."""

    found: list[Problem] = field(default_factory=list)
    """What check said before anything was done."""
    done: list[str] = field(default_factory=list)
    left: list[Problem] = field(default_factory=list)
    """What check says now; with ``dry_run`` not known."""
    reindex: ReindexReport | None = None
    """What making the index anew found, if that was done; its losses are losses."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong any more."""
        return not self.left and (self.reindex is None or self.reindex.ok)


def repair(
    path: Path,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
    disk: Disk | None = None,
) -> RepairReport:
    """Repair the store at ``path``. See the module's text. Doing it again changes nothing more.

    Raises:
        UsageError, FormatVersionError: not a store, or not one of ours to read.
        CorruptError: dedupfs.json is damaged, and the index has no copy of it.
        StoreBusyError: a process uses the store.
        StoreError: the file system failed; the index is what it was.
    """
    layout = Layout(Path(os.path.abspath(path)))
    return _Repair(layout, disk or RealDisk(), progress, dry_run).run()


class _Repair:
    """One run."""

    def __init__(
        self, layout: Layout, disk: Disk, progress: Progress | None, dry_run: bool
    ) -> None:
        self._layout = layout
        self._disk = disk
        self._progress = progress
        self._dry_run = dry_run
        self._report = RepairReport()

    def run(self) -> RepairReport:
        require_reachable(self._layout.root)
        if not self._layout.config.exists() and not self._layout.packs.is_dir():
            read_config(self._layout, self._disk)  # says that this is no store
        self._disk.mkdir(self._layout.run)
        with alone(self._layout, self._disk):
            require_unused(self._layout, self._disk, self._layout.index)
            has_index = _is_walkable(self._layout.index)
            config = self._restore_config(has_index)
            if has_index:
                self._report.found = self._check_and_heal(config)
            else:
                what = "it is missing, or so damaged that it cannot be read"
                self._report.found = [Problem("index", str(self._layout.index), what, REINDEX)]
            if _is_rebuilt_for(self._report.left or self._report.found):
                self._rebuild(config)
            if not self._dry_run:
                self._finish(config)
        return self._report

    def _did(self, what: str) -> None:
        log.info("%s store=%s", what, self._layout.root)
        self._report.done.append(what)

    def _tell(self, what: str) -> Callable[[int, int], None]:
        progress = self._progress
        return (lambda done, total: progress(what, done, total)) if progress else lambda *_: None

    # --- steps --------------------------------------------------------------------------------

    def _restore_config(self, has_index: bool) -> StoreConfig:
        try:
            return read_config(self._layout, self._disk)
        except FormatVersionError:
            raise
        except (UsageError, CorruptError) as exc:
            config = self._saved_config() if has_index else None
            if config is None:
                raise CorruptError(
                    f"{self._layout.config} is missing or damaged, and the index has no copy of "
                    "it: put it back from a backup, for nothing can be read without its hash_seed"
                ) from exc
        if not self._dry_run:
            write_config(self._layout, self._disk, config)
        self._did("dedupfs.json is written again from its copy in the index")
        return config

    def _saved_config(self) -> StoreConfig | None:
        with Database(self._layout.index) as db:
            try:
                return saved_config(db)
            except FormatVersionError:
                raise
            except StoreError:
                return None

    def _check_and_heal(self, config: StoreConfig) -> list[Problem]:
        """Return what check says; when something could be healed, ``left`` is what it says then."""
        with self._open(config) as store:
            try:
                found = check(store, progress=self._tell("check")).problems
            except StoreError as exc:
                found = [Problem("index", str(self._layout.index), str(exc), REINDEX)]
            self._heal(store, found)
        return found

    def _heal(self, store: Store, problems: list[Problem]) -> bool:
        """Heal what can be; whether that was something: ``left`` is what check says then."""
        seen = set[RecordId]()
        while True:  # check names 10,000 problems at a time
            bad = [problem.record_id for problem in problems if problem.code == "record"]
            healed = heal(store, map(_record_id, bad), dry_run=self._dry_run)
            if {record.record_id for record in healed} <= seen:
                return bool(seen)
            for record in healed:
                self._did(str(record))
            if self._dry_run:
                return False
            seen |= {record.record_id for record in healed}
            problems = check(store, progress=self._tell("check")).problems
            self._report.left = problems

    def _rebuild(self, config: StoreConfig) -> None:
        if not self._dry_run:
            before = self._report.reindex
            self._report.reindex = rebuild_index(self._layout, config, self._disk, self._progress)
            if before is not None:
                self._report.reindex.take_losses_of(before)
        self._did("the index is made anew from the packs and the journals of views")

    def _finish(self, config: StoreConfig) -> None:
        with self._open(config) as store:
            save_config(store.db, config)
            release_dead_owners(store)
            removed = remove_leftovers(store)
            if removed:
                self._did(f"{removed} files that dead processes left are removed")
            self._remove_unfinished()
            self._report.left = check(store, progress=self._tell("check")).problems
        if self._report.reindex is not None:
            self._heal_once_more(config)
            self._report.reindex.problems = self._report.left

    def _heal_once_more(self, config: StoreConfig) -> None:
        """Heal what only the new index told of: what is damaged, or where a copy of it is.

        What a damaged record refers to was not counted, so when one was healed, nothing may be
        freed before it is: by one more index.
        """
        with self._open(config) as store:
            has_healed = self._heal(store, self._report.left)
        if has_healed and _is_rebuilt_for(self._report.left):
            self._rebuild(config)
            with self._open(config) as store:
                self._report.left = check(store, progress=self._tell("check")).problems

    def _remove_unfinished(self) -> None:
        """Remove what a crash of reindex, of this, or of ``init`` leaves beside the real thing."""
        root = self._layout.root
        self._disk.unlink(self._layout.config.with_name(self._layout.config.name + ".new"))
        for name in (NEW, OLD):
            if (root / name).exists():
                remove_tree(root / name)
                self._did(f"the leftover {root / name} is removed")

    def _open(self, config: StoreConfig) -> Store:
        return Store(self._layout.root, config, Database(self._layout.index), self._disk)


def _is_rebuilt_for(problems: list[Problem]) -> bool:
    """Whether a new index would be without some problem.

    Not for garbage alone while anything else is damaged: what hangs on that would become garbage.
    """
    codes = {problem.code for problem in problems}
    return bool(codes & _REBUILT) or (_GARBAGE in codes and "record" not in codes)


def _record_id(text: str) -> RecordId:
    return RecordId(bytes.fromhex(text))


def _is_walkable(index: Path) -> bool:
    """Whether LMDB can read every row of the index; a process of its own finds out.

    Damaged pages can make it abort or touch memory that is not there.
    """
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return status == 0
    try:
        for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where LMDB tells of its assertions
        with Database(index) as db, db.reading() as txn:
            for table in Table:
                for _row in txn.scan(table):
                    pass
        os._exit(0)
    finally:
        os._exit(1)
