"""One transaction from begin to end: packs synced, rows written, failures rolled back.

Knows when things happen; what becomes of the rows is ``commit.py``'s. Source: docs/format.md,
"Write order".
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dedupfs.errors import StoreError, StoreFullError, UsageError
from dedupfs.format.keys import decode_location
from dedupfs.interrupts import Held
from dedupfs.model import PackKind, RecordId
from dedupfs.store.codec import decode
from dedupfs.store.commit import lost_error, plan_commit, write_plan
from dedupfs.store.db import Database
from dedupfs.store.disk import Disk
from dedupfs.store.layout import Layout
from dedupfs.store.openpack import OpenPacks
from dedupfs.store.owner import Owner
from dedupfs.store.pending import Pending
from dedupfs.store.reader import Reader
from dedupfs.store.transaction import Transaction

_SPARE_BYTES = 8 << 20
"""Kept allocated behind the index, so that a full disk still takes transactions that free space."""


@dataclass(slots=True, kw_only=True)
class Committer:
    """Runs transactions. ``active`` is the one under way, in the thread ``_thread``."""

    layout: Layout
    disk: Disk
    db: Database
    packs: OpenPacks
    pending: Pending
    reader: Reader
    owner: Owner
    active: Transaction | None = None
    _thread: int = 0

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """See ``Store.transaction``."""
        if self._thread == threading.get_ident():
            raise UsageError("a transaction inside a transaction")
        self.sync()
        if self.pending.rows and not self.disk.reserve(self.db.data_path, _SPARE_BYTES):
            raise StoreFullError(f"{self.layout.root}: the disk is full")
        held = Held()  # nothing comes between the commit and the note of it, nor into a roll-back
        try:
            with self.db.writing() as raw:
                txn = Transaction(raw, self.owner, self.pending)
                try:
                    self.active, self._thread = txn, threading.get_ident()
                    yield txn
                    held.begin()
                    self._finish(txn)
                except BaseException:
                    held.begin()
                    self._roll_back()
                    raise
                finally:
                    self.active, self._thread = None, 0
            self.pending.inserted_bytes += self.pending.stored_bytes
            self.pending.clear()
            self.packs.committed()
        finally:
            held.end()

    def sync(self) -> None:
        """Make all packs durable; when the disk could not, what is pending is given up.

        The kernel drops what it could not write and tells once, so a second try would prove
        nothing: callers put their records again.
        """
        try:
            self.packs.sync()
        except StoreError:
            if self.packs.sync_failed:
                self.drop_pending()
            raise

    def _finish(self, txn: Transaction) -> None:
        """Write all rows; everything but LMDB's own commit has been done when this returns."""
        while True:
            plan = plan_commit(txn, self.pending, txn.deltas, self._same_bytes)
            if not plan.lost:
                break
            lost = self.pending.referring_to(plan.lost)
            self._give_up(lost)
            if not lost.isdisjoint(txn.deltas):
                raise lost_error(plan.lost)
        self.sync()  # what the body itself has put
        write_plan(txn, plan, self.pending, self.packs.states())

    def _give_up(self, lost: set[RecordId]) -> None:
        """Forget pending records that can never be committed, so that they are put again."""
        packs = set(self.pending.verbatim)
        for place in self.pending.drop(lost):
            self.packs.erase(*place)
            self.pending.waste.append(place)
        for pack in packs - set(self.pending.verbatim):
            self._drop_verbatim(pack)

    def _drop_verbatim(self, pack: int) -> None:
        self.disk.unlink(self.layout.pack(pack, PackKind.VERBATIM))
        self.reader.forget_pack(pack)

    def _same_bytes(self, mine: bytes, theirs: bytes) -> bool:
        place, _ = decode_location(mine)
        payload = decode(place.codec, self.reader.stored(mine), place.logical_bytes)
        return self.reader.equal(theirs, place.kind, payload)

    def _roll_back(self) -> None:
        for pack in self.packs.rolled_back():
            self.pending.drop_pack(pack)
            self.reader.forget_pack(pack)

    def drop_pending(self) -> None:
        """See ``Store.drop_pending``."""
        with Held():
            for pack in self.pending.verbatim:
                self._drop_verbatim(pack)
            self.pending.clear()
            for pack in self.packs.close():
                self.reader.forget_pack(pack)
