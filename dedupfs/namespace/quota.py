"""What a view may still take: of the disk, of the store's limit, of its own.

A view is charged for what it alone holds, so that removing it would give exactly that back: records
that nothing else refers to, its journal and its staging files. What the store had already costs
nothing. Counting records costs what is held, so it is done now and then, in a thread where one is
at hand; in between the view's row says how many bytes they are at most, since each fold adds what
it has stored, and knows nothing of what it let go of. Knows no request.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dedupfs.errors import QuotaError, StoreError, StoreFullError
from dedupfs.format.keys import decode_count, split_pin_key
from dedupfs.model import NAME_BYTES_MAX, RecordId
from dedupfs.namespace.fold import Folder
from dedupfs.namespace.room import Room
from dedupfs.namespace.rows import ViewRow, decode_view_row, view_owner_key
from dedupfs.namespace.views import view_directory
from dedupfs.store.held import held_bytes
from dedupfs.store.limits import StoreLimit, file_bytes, read_limit, store_use, write_limit
from dedupfs.store.store import Store, Table

log = logging.getLogger(__name__)

NAME_COST_BYTES = 512
"""What a name, a link or a size is taken to cost: some of the journal, then of a tree."""
_LOOK_BYTES = 8 << 20
_COUNT_S_SHORT = 0.05
"""A count that took no longer is done whenever something has changed ..."""
_COUNT_SHARE = 10
"""... and a longer one takes no more than one part in so many of the time."""
_RECOUNT_S = 2.0
"""At the limit, what others do (a snapshot of the view goes) is seen after this."""


@dataclass(frozen=True, slots=True)
class StatFs:
    """What statfs(2) answers: the store's file system, or the limit, whichever fills up first."""

    block_bytes: int
    blocks: int
    blocks_free: int
    blocks_available: int
    inodes: int
    inodes_free: int
    name_bytes_max: int = NAME_BYTES_MAX


def view_held_bytes(store: Store, row: ViewRow) -> int:
    """Count what records take that only this view holds, as of its last fold. Any thread.

    Raises:
        StoreError: one cannot be read; or the view was folded, or removed, meanwhile.
    """
    owner = view_owner_key(row.view_id)
    with store.reading() as txn:
        stored = txn.get(Table.VIEWS, row.name.encode())
        now = decode_view_row(stored) if stored is not None else None
        if now is None or (now.view_id, now.generation) != (row.view_id, row.generation):
            raise StoreError(f"view {row.name!r} was folded meanwhile")
        held: Counter[RecordId] = Counter({row.root_id: 1})
        for key, value in txn.scan(Table.PINS, prefix=owner):
            found, record_id = split_pin_key(key)
            if found == owner:
                held[record_id] += decode_count(value)
        return held_bytes(store, txn, held)


def view_use(store: Store, row: ViewRow) -> int:
    """Return what a view is charged for, counted anew: O(what it alone holds). Errors as above."""
    return view_held_bytes(store, row) + file_bytes(view_directory(store.path, row.name))


class Quota:
    """Says whether an open view may take more. One thread, but for ``count``."""

    def __init__(
        self, store: Store, folder: Folder | None, make_room: Sequence[Callable[[], None]]
    ) -> None:
        """``make_room``: what gives room back, cheapest first. Without limits until ``reload``."""
        self._store = store
        self._folder = folder
        self._make_room = make_room
        self._room = Room(store.path)
        self._store_limit = StoreLimit(store)
        self._limit_bytes: int | None = None
        self._left_bytes = 0
        self._unseen_bytes = 0
        self._counted_generation = 0
        self._counts = 0
        self._counted_s = float("-inf")
        self._count_s = 0.0
        self._is_over = False
        self.is_limited = False

    def reload(self) -> None:
        """Take over limits that have changed.

        Raises:
            FormatVersionError, CorruptError: one cannot be read.
        """
        if self._folder is None:
            return
        self._store_limit.reload()
        self._limit_bytes = read_limit(self._store.disk, self._directory)
        self._left_bytes = 0
        self.is_limited = self._limit_bytes is not None or self._store_limit.limit_bytes is not None

    def set_limit(self, limit_bytes: int | None) -> None:
        """Limit what this view may hold.

        Raises:
            StoreFullError, StoreError: the disk refused.
        """
        write_limit(self._store.disk, self._directory, limit_bytes)
        self.reload()

    def require(self, length: int) -> None:
        """Take room for ``length`` new bytes; when there is none, first give back what went.

        Raises:
            StoreFullError: the disk is full. QuotaError: a limit is reached.
        """
        try:
            self._room.require(length)
            if self.is_limited:
                self._take_within_limits(length)
        except StoreFullError:
            self._take(self._room.require, length)
            if self.is_limited:
                self._take(self._take_within_limits, length)

    def require_name(self, length: int = 0) -> None:
        """Refuse one more name, or attributes of that length, to who is over a limit.

        Where there is no limit a full disk refuses them by itself.
        """
        if self.is_limited:
            self._take(self._take_within_limits, length + NAME_COST_BYTES)

    def _take(self, take: Callable[[int], None], length: int) -> None:
        for make_room in self._make_room:
            try:
                take(length)
            except StoreFullError:
                make_room()
                self._something_went()
            else:
                return
        try:
            take(length)
        except QuotaError as exc:
            if not self._is_over:
                log.info("limit reached: %s", exc)
            self._is_over = True
            raise

    def _take_within_limits(self, length: int) -> None:
        self._store_limit.require(length)
        if self._limit_bytes is None:
            self._is_over = False
            return
        self._unseen_bytes += length
        if length > self._left_bytes or self._unseen_bytes >= _LOOK_BYTES:
            self._left_bytes = self._limit_bytes - self.use_bytes()
            self._unseen_bytes = 0
        if length > self._left_bytes:
            raise QuotaError(
                f"view {self._name}: its limit of {self._limit_bytes} bytes is reached: delete "
                f"something, or raise it with 'dedupfs limit {self._store.path} SIZE --view "
                f"{self._name}'"
            )
        self._left_bytes -= length
        self._is_over = False

    @property
    def _name(self) -> str:
        return self._folder.row.name if self._folder is not None else ""

    @property
    def _directory(self) -> Path:
        return view_directory(self._store.path, self._name)

    def use_bytes(self) -> int:
        """Return what the view is charged for at most."""
        assert self._folder is not None
        if self._folder.row.held_bytes < 0:
            self.recount()
        return max(0, self._folder.row.held_bytes) + file_bytes(self._directory)

    # --- counting --------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        """Whether the view has changed since the last count, and that was long enough ago."""
        assert self._folder is not None
        since_s = time.monotonic() - self._counted_s
        if self._count_s > _COUNT_S_SHORT and since_s < self._count_s * _COUNT_SHARE:
            return False
        return self._counted_generation != self._folder.row.generation

    def recount(self) -> None:
        """Count here and now, if that may tell something new."""
        if self._folder is None:
            return
        if self._is_due() or time.monotonic() - self._counted_s >= max(
            _RECOUNT_S, self._count_s * _COUNT_SHARE
        ):
            count = Count(self._store, self._folder.row, self._counts)
            count.run()
            self.counted(count)

    def count(self) -> "Count | None":
        """Return a count to be run in a thread and handed to ``counted``; None: none is due."""
        if self._limit_bytes is None or self._folder is None or not self._is_due():
            return None
        return Count(self._store, self._folder.row, self._counts)

    def counted(self, count: "Count") -> None:
        """Take over what was counted, and what folds have added since it began."""
        if self._folder is None or count.number != self._counts:
            return  # another one came first
        self._counts += 1
        self._counted_s = time.monotonic()
        self._count_s = count.seconds
        self._counted_generation = count.row.generation
        row = self._folder.row
        if count.held_bytes is None:
            return
        added_bytes = max(0, row.held_bytes - max(0, count.row.held_bytes))
        held = count.held_bytes + added_bytes
        self._folder.row = msgspec.structs.replace(row, held_bytes=held)
        self._left_bytes = 0

    def _something_went(self) -> None:
        """Look again: something may have been given back."""
        self._left_bytes = 0
        if self.is_limited:
            self._store_limit.look_again()
            self.recount()

    def recount_soon(self) -> None:
        """Hear that something else holds what the view holds: a snapshot that was made of it."""
        self._counted_generation = 0

    # --- telling ---------------------------------------------------------------------------------

    def statfs(self) -> StatFs:
        """Return the room on the store's file system, or what the limits leave of it."""
        found = os.statvfs(self._store.path)
        block_bytes = found.f_frsize
        blocks, free, available = found.f_blocks, found.f_bfree, found.f_bavail
        limits = []
        if self._limit_bytes is not None:
            limits.append((self._limit_bytes, self.use_bytes()))
        if self._store_limit.limit_bytes is not None and self._folder is not None:
            limits.append((self._store_limit.limit_bytes, store_use(self._store)))
        for limit_bytes, use_bytes in limits:
            left = max(0, limit_bytes - use_bytes) // block_bytes
            blocks = min(blocks, limit_bytes // block_bytes)
            free, available = min(free, left), min(available, left)
        return StatFs(block_bytes, blocks, free, available, found.f_files, found.f_ffree)


class Count:
    """A count of what a view alone holds; run it in any thread."""

    def __init__(self, store: Store, row: ViewRow, number: int) -> None:
        self._store = store
        self.row = row
        self.number = number
        self.held_bytes: int | None = None
        self.seconds = 0.0

    def run(self) -> None:
        """Count. A failure leaves the number as it was: the next read of that record will tell."""
        begun_s = time.thread_time()  # not what others take of the processor meanwhile
        try:
            self.held_bytes = view_held_bytes(self._store, self.row)
        except StoreError:
            self.held_bytes = None
        self.seconds = time.thread_time() - begun_s
