"""An open view: requests are answered while it is brought to life, folded, committed, handed over.

The facade that adapters call (FUSE, the Python interface): what is asked of its tree is in
requests.py, what becomes of the view here. Synchronous; one thread.
"""

import logging
import time
from typing import Self

from dedupfs.errors import ReadOnlyError, StoreError
from dedupfs.format.tree import encode_view_root
from dedupfs.model import Attr, SnapshotInfo
from dedupfs.namespace import copying
from dedupfs.namespace.attributes import AttrChange
from dedupfs.namespace.fold import Folder
from dedupfs.namespace.handles import SyncPlan
from dedupfs.namespace.handover import LEDGER, NUMBERS, OWNER, VIEW_LOCK, Handover
from dedupfs.namespace.lifecycle import Opened, bring_back, make_ephemeral, open_bare, take_over
from dedupfs.namespace.names import Caller
from dedupfs.namespace.quota import Quota, StatFs
from dedupfs.namespace.relief import Relief
from dedupfs.namespace.requests import Requests
from dedupfs.namespace.views import delete_view
from dedupfs.store.pace import run_steps
from dedupfs.store.store import Store

log = logging.getLogger(__name__)

__all__ = ["AttrChange", "Caller", "StatFs", "View"]

JOURNAL_BYTES_MAX = 64 << 20
"""A journal that has grown this long is folded at once ..."""
EDITS_MAX = 30_000
"""... or has so many edits: a daemon that takes over replays them while callers wait (about 10 us
each) ..."""
FOLD_IDLE_S = 5.0
"""... and any other once nothing has changed for so long."""
FOLD_AGE_S = 30.0
"""... or when its first edit is so old."""


class View(Requests):
    """One open view."""

    def __init__(self, store: Store, opened: Opened) -> None:
        self._store = store
        self._opened = opened
        self._folder = Folder(opened.state, opened.row) if opened.row is not None else None
        quota = Quota(store, self._folder, (self._let_go, self._fold_and_free))
        super().__init__(opened.state, opened.ledger, quota, read_only=self._folder is None)
        self.relief = Relief(store, read_only=self.read_only)
        if self._folder is not None and self._folder.has_changes():
            self._first_change_s = time.monotonic()  # a crash left a journal: fold it soon
        self.name = opened.row.name if opened.row is not None else ""

    @classmethod
    def bring_back(
        cls,
        store: Store,
        name: str = "default",
        *,
        snapshot: str | None = None,
        mountpoint: str = "",
    ) -> Self:
        """Bring back the view ``name``, or make it over the catalogue or ``snapshot``.

        Raises:
            UsageError: no possible name, or the view has another base. NotFoundError: no such
                snapshot. StoreBusyError: another process owns it. CorruptError: a limit's file is.
        """
        return cls(store, bring_back(store, name, snapshot, mountpoint))._within_limits()

    @classmethod
    def open_ephemeral(
        cls, store: Store, *, snapshot: str | None = None, mountpoint: str = ""
    ) -> Self:
        """Make a view that ``close`` deletes."""
        return cls(store, make_ephemeral(store, snapshot, mountpoint))._within_limits()

    def _within_limits(self) -> Self:
        try:
            self.quota.reload()
        except BaseException:
            self._opened.release()
            raise
        return self

    @classmethod
    def open_read_only(cls, store: Store, *, snapshot: str | None = None) -> Self:
        """Look at the catalogue or a snapshot; nothing can be changed, and nothing is kept."""
        return cls(store, open_bare(store, snapshot))

    @classmethod
    def take_over(cls, store: Store, handover: Handover, mountpoint: str) -> Self:
        """Go on with the view of a daemon that died: its open files are open, nothing is lost.

        Raises:
            StoreError: its root or its journal cannot be read.
        """
        if handover.root:
            view = cls(store, open_bare(store, None, handover))
        else:
            view = cls(store, take_over(store, handover, mountpoint))
        view._handles.restore()
        try:
            view.quota.reload()
        except StoreError as exc:  # callers wait: it is for who set it, not for them
            log.error("limits do not count until they are set again view=%s: %s", view.name, exc)
        return view

    def handover(self) -> Handover:
        """Return what another daemon needs to go on if this one dies."""
        fds = {LEDGER: self.ledger.fd, OWNER: self._store.claim_owner()}
        root = b""
        if self._opened.bare is not None:
            root = encode_view_root(self._opened.bare)
            assert self._state.journal is not None
            fds[NUMBERS] = self._state.journal.fd
        if self._opened.lock is not None:
            fds[VIEW_LOCK] = self._opened.lock.file.fd
        return Handover(self.name, root, self._store.owner, fds)

    @property
    def has_cached_writes(self) -> bool:
        """Whether writes come from the kernel's page cache, which knows when they were made."""
        return self._state.kernel_keeps_times

    @has_cached_writes.setter
    def has_cached_writes(self, cached: bool) -> None:
        self._state.kernel_keeps_times = self.ledger.has_cached_writes = cached

    @property
    def did_request(self) -> bool:
        """Whether the request that the ledger has in hand was done before the daemon died."""
        return self._opened.did_request

    def close(self) -> None:
        """Fold, let go of the view, or delete it when it is ephemeral."""
        try:
            if self._opened.ephemeral:
                delete_view(self._store, self.name)
            elif self._folder is not None:
                self._folder.fold()
        finally:
            self._opened.release()

    def abandon(self) -> None:
        """In a forked child: the view is the parent's; its lock goes when the parent lets go."""
        if self._opened.lock is not None:
            self._opened.lock.file.close()

    # --- counters --------------------------------------------------------------------------------

    def totals(self) -> dict[str, int]:
        """Return what was done since the view was opened; each only grows."""
        return {**self._store.totals(), "tree_reads": self._state.trees.reads}

    def gauges(self) -> dict[str, int]:
        """Return what there is now."""
        journal = self._state.journal
        return {
            **self._handles.gauges(),
            "changed_files": len(self._state.files),
            "journal_bytes": journal.size if journal is not None else 0,
        }

    # --- folding and committing ------------------------------------------------------------------

    def wants_fold(self) -> bool:
        """Whether it is time to fold: the journal is long or old, or nothing is going on."""
        journal = self._state.journal
        if journal is None or self._folder is None:
            return False
        if journal.size >= JOURNAL_BYTES_MAX or self._state.edit_count >= EDITS_MAX:
            return True
        if self._handles.settle_wanted:
            return True
        if self._first_change_s is None:
            return False
        now_s = time.monotonic()
        return (
            now_s - self._last_change_s >= FOLD_IDLE_S or now_s - self._first_change_s >= FOLD_AGE_S
        )

    def prepare_fold(self) -> SyncPlan:
        """Plan the waiting that a fold would do: run it in a thread first."""
        return self._handles.plan_fold()

    def fold(self) -> None:
        """Turn what changed into trees and start a new journal.

        Raises:
            StoreFullError, StoreError: the view goes on with the journal it has.
        """
        if self._folder is None:
            return
        self._folder.fold(everything=False)
        self._handles.settle_wanted.clear()
        self._first_change_s = None

    @property
    def has_changes(self) -> bool:
        """Whether anything was done since the last fold, which may let go of something."""
        return self._folder is not None and self._first_change_s is not None

    def _let_go(self) -> None:
        """Give back at once what costs no fold."""
        if self._folder is not None:
            self._handles.adopt_found()
            self._folder.drop_obsolete()

    def _fold_and_free(self) -> None:
        """Give back what was deleted since the last fold."""
        if self._first_change_s is not None and not self._is_to_be_tried_again:
            self.fold()
            run_steps(self.relief.giving_back(hurried=True))

    def copy(self, inode: int, new_parent: int, new_name: bytes) -> Attr:
        """Make a copy of what an inode is, with all below it; no byte is read (``copying.py``)."""
        self.quota.require_name()
        now_ns = self._now()
        assert self._folder is not None
        directory = self._state.directory(new_parent)
        entry = copying.copy(self._state, self._folder, inode, directory, new_name, now_ns)
        return self._state.attr_of(directory, entry)

    def commit(
        self,
        snapshot: str,
        *,
        path: bytes = b"",
        tags: dict[str, str] | None = None,
        created_ns: int | None = None,
    ) -> SnapshotInfo:
        """Freeze the view, or the directory at ``path`` of it, as a snapshot.

        Raises:
            UsageError, ExistsError: the name. NotADirectoryNameError: the path. ReadOnlyError: the
                mount is read-only.
        """
        if self._folder is None:
            raise ReadOnlyError("a read-only mount has nothing to commit")
        when_ns = time.time_ns() if created_ns is None else created_ns
        made = self._folder.commit(snapshot, path, tags or {}, when_ns)
        self.quota.recount_soon()
        return made
