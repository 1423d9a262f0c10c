"""One file that is open or changed: its settled extents, and the bytes that are newer.

A file is *clean* (all bytes are chunks), *buffered* (small: all bytes in memory, and in the
journal) or *staged* (changed ranges in a staging file). Knows no names; what must survive SIGKILL
goes to the ``FileLog`` before a call returns. Source: docs/architecture.md, "Write".
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import msgspec

from dedupfs.errors import StoreError, TooLargeError
from dedupfs.format.journal import Adopt, Dirty, Edit, Stage, Truncate, Write
from dedupfs.format.tree import encode_extents
from dedupfs.model import ATIME_EPOCH_NS, FILE_BYTES_MAX, HOLE, Extent, RecordId, TreeEntry
from dedupfs.namespace.contents import hole_bytes, load_recipe
from dedupfs.namespace.ordered import OrderedCutter
from dedupfs.namespace.readplan import ReadPlan
from dedupfs.namespace.staging import Staging
from dedupfs.ranges import Ranges
from dedupfs.recipe import Piece, Recipe, hole_extents
from dedupfs.store.store import Store

BUFFER_CHUNKS = 2
"""A changed file of up to so many chunks of average length (128 KiB by default) is kept in memory
and in the journal, without a staging file."""
_WITHOUT_END = 1 << 63
_ADOPT_EXTENTS_MAX = 1 << 18
"""Extents in one edit, so that no journal record comes near its limit (format/journal.py)."""


class FileLog(Protocol):
    """Where an open file writes down what must survive, and gets its staging files."""

    kernel_keeps_times: bool
    """Writes come from the kernel's page cache, later than they were made: it says when that was
    (setattr), and so they change no times themselves."""

    def append_file(self, inode: int, edits: Sequence[Edit], time_ns: int) -> None:
        """Journal what happened to ``inode`` at ``time_ns``; SIGKILL cannot lose it afterwards."""

    def new_staging(self) -> Staging:
        """Make a new staging file."""

    def pin_extents(self, extents: Sequence[Extent]) -> bool:
        """Hold chunks back from gc for this view; False when one is gone already."""

    def sync_journal(self) -> None:
        """Make what was journaled durable: before blocks are given up that it speaks of."""


@dataclass(frozen=True, slots=True)
class _Changed:
    """What a file was before it settled."""

    entry: TreeEntry
    recipe: Recipe | None
    buffer: bytearray | None
    staging: Staging | None
    dirty: Ranges
    cutter: OrderedCutter | None


class OpenFile:
    """The content of one inode while it is open or newer than its tree."""

    def __init__(self, store: Store, log: FileLog, inode: int, entry: TreeEntry) -> None:
        self.store = store
        self._log = log
        self._buffer_bytes_max = BUFFER_CHUNKS * store.config.chunk_bytes_average
        self.inode = inode
        self.entry = entry
        self.size = entry.size
        self.mtime_ns = entry.mtime_ns
        self.ctime_ns = entry.ctime_ns
        self.open_count = 0
        self.orphan = False
        """It has no name any more, and is kept for those who still hold it."""
        self.forgotten = False
        """An orphan that the kernel does not know any more: the last handle drops it."""
        self._recipe: Recipe | None = None
        self.buffer: bytearray | None = None
        self.staging: Staging | None = None
        self.dirty = Ranges()
        self.cutter: OrderedCutter | None = None
        self._new = False
        self._journaled_stop = 0
        self.detached: list[Staging] = []
        self.lost = False
        """A power cut took the staging file that the journal names."""
        self._before: _Changed | None = None
        self.unsettled = False
        """Whether bytes, size or times are newer than ``entry``."""

    @property
    def recipe(self) -> Recipe:
        """The settled extents (of a new file: the adopted ones, and holes between them)."""
        if self._recipe is None:
            self._recipe = load_recipe(self.store, self.entry.content)
        return self._recipe

    def current_entry(self) -> TreeEntry:
        """Return the entry with size and times as they are now."""
        if not self.unsettled:
            return self.entry
        return msgspec.structs.replace(
            self.entry,
            size=self.size,
            hole_bytes=self._hole_bytes(),
            mtime_ns=self.mtime_ns,
            ctime_ns=self.ctime_ns,
        )

    def _hole_bytes(self) -> int:
        """Return about how many bytes take no room: what a staging file has not allocated."""
        if self.buffer is not None:
            return 0
        if self.staging is None:
            return min(self.entry.hole_bytes, self.size)
        return max(0, self.size - self.staging.stored_bytes - self.recipe.size)

    def named_entry(self) -> TreeEntry:
        """Return the entry with times as they are now, but content and size as settled."""
        return msgspec.structs.replace(self.entry, mtime_ns=self.mtime_ns, ctime_ns=self.ctime_ns)

    # --- reading ---------------------------------------------------------------------------------

    def plan_read(self, start: int, length: int) -> ReadPlan:
        """Plan to read ``[start, start + length)``, clipped to the file."""
        stop = min(start + length, self.size)
        if start >= stop:
            return ReadPlan(self.store, (b"",))
        if self.buffer is not None:
            return ReadPlan(self.store, (bytes(self.buffer[start:stop]),))
        if self.staging is None:
            return ReadPlan(self.store, (tuple(self._base_pieces(start, stop)),))
        parts: list[bytes | tuple[Piece, ...]] = []
        for dirty_start, dirty_stop in self.dirty.within(start, stop):
            if start < dirty_start:
                parts.append(tuple(self._base_pieces(start, dirty_start)))
            parts.append(self.staging.read(dirty_start, dirty_stop))
            start = dirty_stop
        if start < stop:
            parts.append(tuple(self._base_pieces(start, stop)))
        return ReadPlan(self.store, tuple(parts))

    def read(self, start: int, stop: int) -> bytes:
        """Return ``[start, stop)``, waiting for the disk where needed."""
        return self.plan_read(start, stop - start).run()

    def next_data(self, start: int, stop: int) -> int:
        """Return where in ``[start, stop)`` the zeros end that a staging file's hole at ``start``
        makes; ``start`` itself where there is none."""
        ranges = self.dirty.within(start, stop)
        if self.staging is None or not ranges or ranges[0][0] > start:
            return start
        return self.staging.next_data(start, ranges[0][1])

    def _base_pieces(self, start: int, stop: int) -> list[Piece]:
        pieces = self.recipe.cut(start, stop)
        covered = min(stop, max(start, self.recipe.size))
        if covered < stop:
            pieces.append(Piece(HOLE, 0, stop - covered, covered))
        return pieces

    # --- writing ---------------------------------------------------------------------------------

    def write(self, file_offset: int, data: bytes, now_ns: int) -> None:
        """Write ``data``; when this returns, SIGKILL cannot lose it.

        Raises:
            TooLargeError: beyond the largest file. StoreFullError, StoreError: nothing changed.
        """
        stop = file_offset + len(data)
        if stop > FILE_BYTES_MAX:
            raise TooLargeError(f"a file cannot have {stop} bytes")
        if self._log.kernel_keeps_times:
            now_ns = 0
        self._make_writable(max(self.size, stop), now_ns, keep=self.size)
        if self.buffer is not None:
            self._log.append_file(self.inode, [Write(self.inode, file_offset, data)], now_ns)
            if file_offset > len(self.buffer):
                self.buffer.extend(bytes(file_offset - len(self.buffer)))
            self.buffer[file_offset:stop] = data
        else:
            self._write_staged(file_offset, data, now_ns)
        self.size = max(self.size, stop)
        self.changed(now_ns)

    def changed(self, now_ns: int) -> None:
        """Note that the bytes changed at ``now_ns``; when they were read last stays as it was.

        0: the kernel says when (see ``FileLog``).
        """
        self.unsettled = True
        if not now_ns:
            return
        if not self.entry.atime_ns:
            atime_ns = self.mtime_ns or ATIME_EPOCH_NS
            self.entry = msgspec.structs.replace(self.entry, atime_ns=atime_ns)
        self.mtime_ns = now_ns
        self.ctime_ns = 0

    def _write_staged(self, file_offset: int, data: bytes, now_ns: int) -> None:
        """Write to the staging file, and to the journal unless the staging file alone is enough.

        It is for bytes behind the settled ones: they have nothing older under them that a power
        cut could uncover. What replaces settled bytes is journaled as data, so that replay needs no
        order between two files.
        """
        assert self.staging is not None
        journaled = file_offset < self.journaled_stop
        if journaled:
            self._log.append_file(self.inode, [Write(self.inode, file_offset, data)], now_ns)
            self.note_journaled(file_offset, file_offset + len(data))
        self.staging.write(file_offset, data, now_ns, journaled=journaled)
        if self.cutter is not None:
            self.cutter.feed(file_offset, data)
            self.cutter.write_out(self.staging.write_out)
            if self.cutter.wants_adoption():
                self.adopt(now_ns)

    @property
    def journaled_stop(self) -> int:
        """Below here lie settled bytes, or bytes that are in the journal; behind, staged ones."""
        return max(self.recipe.size, self._journaled_stop)

    def note_journaled(self, start: int, stop: int) -> None:
        """Take over that the journal holds the bytes of ``[start, stop)``."""
        self.dirty.add(start, stop)
        self._journaled_stop = max(self._journaled_stop, stop)

    def _make_writable(self, size: int, now_ns: int, *, keep: int) -> None:
        """Become buffered or staged, as a file of ``size`` bytes has to be.

        While an older staging file waits for a fold (replay settled it, or it is lost), another one
        must follow: to the next replay, edits without one would speak of the older.
        """
        must_stage = size > self._buffer_bytes_max or self.lost or bool(self.detached)
        if self.buffer is None and self.staging is None:
            if must_stage:
                self._stage(now_ns)
            else:
                self.become_buffered(keep)
        elif self.buffer is not None and must_stage:
            self._spill(now_ns)

    def become_buffered(self, keep: int) -> None:
        """Take the first ``keep`` bytes of a clean file into memory."""
        self.buffer = bytearray(self.read(0, keep)) if keep else bytearray()

    def _stage(self, now_ns: int) -> None:
        """Become staged; of a buffered file all bytes are staged."""
        staging = self._log.new_staging()
        edits: list[Edit] = [Stage(self.inode, staging.number, self._log.kernel_keeps_times)]
        if self.buffer is not None:  # which replay may not know, if the write was refused
            edits.insert(0, Truncate(self.inode, len(self.buffer)))
        try:
            if self.buffer:
                staging.write(0, bytes(self.buffer), now_ns, journaled=True)
            self._log.append_file(self.inode, edits, now_ns)
        except BaseException:
            staging.remove()
            raise
        self.attach(staging)

    def attach(self, staging: Staging) -> None:
        """Keep changed bytes in ``staging`` from here on (all bytes of a buffered file).

        What was buffered counts as journaled: the staging file may not be durable, but settled
        bytes and those of an fsync before now must be found again.
        """
        journaled_bytes = 0
        if self.buffer is not None:
            journaled_bytes = len(self.buffer)
            self.buffer = None
            self._recipe = Recipe()
        self.staging = staging
        self.lost = False
        self.dirty = Ranges()
        self.dirty.add(self.recipe.size, _WITHOUT_END)
        self._journaled_stop = journaled_bytes
        self._new = not self.recipe.size
        if self._new:
            self.cutter = OrderedCutter(self.store)

    def _spill(self, now_ns: int) -> None:
        """Turn a buffered file into a staged one."""
        data = bytes(self.buffer or b"")
        self._stage(now_ns)
        if self.cutter is not None:
            self.cutter.feed(0, data)

    def truncate(self, size: int, now_ns: int) -> None:
        """Cut off, or extend with zeros.

        Raises:
            TooLargeError: beyond the largest file. StoreFullError, StoreError: nothing changed.
        """
        if size > FILE_BYTES_MAX:
            raise TooLargeError(f"a file cannot have {size} bytes")
        if self._log.kernel_keeps_times:
            now_ns = 0
        self._make_writable(size, now_ns, keep=min(size, self.size))
        if self.staging is None:
            self._log.append_file(self.inode, [Truncate(self.inode, size)], now_ns)
        else:
            start, data = self._clipped_bytes(size)
            self.staging.truncate(size, now_ns)
            if size < self.journaled_stop:
                self.staging.write(start, data, now_ns)
                with suppress(StoreError):  # fsync will tell; until then SIGKILL is what counts
                    # or a power cut could bring back the length without the bytes
                    self.staging.sync()
                try:
                    self._log.append_file(self.inode, [Truncate(self.inode, size)], now_ns)
                except StoreError:
                    self._take_truncate(size, now_ns)  # the staging file is shorter all the same
                    raise
        self._take_truncate(size, now_ns)

    def _take_truncate(self, size: int, now_ns: int) -> None:
        self.apply_truncate(size)
        self.changed(now_ns)

    def _clipped_bytes(self, size: int) -> tuple[int, bytes]:
        """Return what is left of a settled chunk that a staged file is cut inside of."""
        if self.staging is None or size >= self.recipe.size:
            return size, b""
        index = self.recipe.index_at(size)
        start = self.recipe.bounds(index)[0]
        if self.recipe.ids[index] == HOLE or start == size:
            return size, b""
        return start, self.read(start, size)

    def apply_truncate(self, size: int) -> None:
        """Take over a size that is in the journal, and bytes that are where they belong."""
        if self.buffer is not None:
            del self.buffer[size:]
            self.buffer.extend(bytes(size - len(self.buffer)))
        elif self.staging is not None:
            self._clip(size)
        self.size = size

    def _clip(self, size: int) -> None:
        """Forget settled extents that reach beyond ``size``."""
        recipe = self.recipe
        if self.cutter is not None:
            self.cutter.stop_at(size)
        if size < recipe.size:
            index = recipe.index_at(size)
            start = recipe.bounds(index)[0]
            kept = list(recipe.slice(0, index))
            if recipe.ids[index] == HOLE:
                kept += hole_extents(size - start)
            self._recipe = Recipe(kept)
        self._journaled_stop = min(self._journaled_stop, size)
        self.dirty.add(self.recipe.size, _WITHOUT_END)

    # --- chunks that the store has already -------------------------------------------------------

    def adopt(self, now_ns: int) -> None:
        """Let chunks that the store has replace their bytes in the staging file.

        Order: the chunks are held back from gc, the journal says so durably, then the blocks go.
        """
        assert self.cutter is not None
        assert self.staging is not None
        adopted = []
        found = self.cutter.take_found()
        if not self._log.pin_extents([extent for _, extents in found for extent in extents]):
            found = [run for run in found if self._log.pin_extents(run[1])]
        for start, extents in found:
            edit = Adopt(self.inode, start, encode_extents(extents))
            self._log.append_file(self.inode, [edit], now_ns)
            self.apply_adopt(start, extents)
            adopted.append((start, start + sum(extent.length for extent in extents)))
        if not adopted:
            return
        try:
            self._log.sync_journal()
        except StoreError:
            return  # the blocks stay, and fsync will tell: the write itself is done
        for start, stop in adopted:
            self.staging.punch(start, stop)

    def adopt_before_sync(self) -> None:
        """Adopt what was found, if it is much: a sync need not write it to the disk then."""
        if self.cutter is None or not self.cutter.finds_much():
            return
        with suppress(StoreError):  # the staging file has it all the same
            self.adopt(0 if self._log.kernel_keeps_times else self.mtime_ns)

    def apply_adopt(self, start: int, extents: Sequence[Extent]) -> None:
        """Take over extents that are in the journal already."""
        self.recipe.extend(hole_extents(start - self.recipe.size))
        self.recipe.extend(extents)
        self.dirty.remove(start, self.recipe.size)

    @property
    def may_be_carried(self) -> bool:
        """Whether its bytes may stay in the staging file through a fold."""
        return self.staging is not None and not self.staging.syncer.failed

    def sync(self) -> None:
        """Make the staging file durable, with the time of the last write or what utimes set."""
        if self.staging is not None:
            self.staging.touch(self.mtime_ns)
            self.staging.sync()

    def adopted_ids(self) -> list[RecordId]:
        """Return the chunks that a new file has adopted, which no tree refers to yet."""
        if not self._new or self.staging is None:
            return []
        return [chunk_id for chunk_id in self.recipe.ids if chunk_id != HOLE]

    def restated(self) -> list[Edit]:
        """Return the edits that say in a new journal what is not settled.

        The staging file must be durable: the new journal does not repeat bytes.
        """
        if self.buffer is not None:
            return [Truncate(self.inode, 0), Write(self.inode, 0, bytes(self.buffer))]
        if self.staging is None:
            return []
        kept_bytes = 0 if self._new else self.recipe.size
        edits: list[Edit] = [
            Stage(self.inode, self.staging.number, self._log.kernel_keeps_times),
            Truncate(self.inode, kept_bytes),
        ]
        position = 0
        for start, stop in [*self.dirty.within(0, self.recipe.size), (self.recipe.size, 0)]:
            if self._new and position < start:
                edits += self._adopts(position, start)
            if start < stop and not self._new:
                edits.append(Dirty(self.inode, start, stop))
            position = stop
        return edits

    def _adopts(self, start: int, stop: int) -> Iterator[Edit]:
        pieces = self.recipe.cut(start, stop)
        for first in range(0, len(pieces), _ADOPT_EXTENTS_MAX):
            run = pieces[first : first + _ADOPT_EXTENTS_MAX]
            extents = [Extent(piece.chunk_id, piece.length) for piece in run]
            yield Adopt(self.inode, run[0].file_offset, encode_extents(extents))

    # --- settling --------------------------------------------------------------------------------

    def become_clean(self, content: bytes, extents: Sequence[Extent]) -> None:
        """All bytes are chunks now; the staging file waits in ``detached`` for the commit."""
        self._before = _Changed(
            self.entry, self._recipe, self.buffer, self.staging, self.dirty, self.cutter
        )
        if self.staging is not None:
            self.detached.append(self.staging)
        self.staging = None
        self.buffer = None
        self.cutter = None
        self.dirty = Ranges()
        self._recipe = Recipe(extents) if self.open_count else None  # who reads it makes it again
        self.size = sum(extent.length for extent in extents)
        self.entry = msgspec.structs.replace(
            self.entry,
            content=content,
            size=self.size,
            hole_bytes=hole_bytes(extents),
            mtime_ns=self.mtime_ns,
            ctime_ns=self.ctime_ns,
        )

    def stagings(self) -> list[Staging]:
        """Return the staging files that the journal still needs for this file."""
        return [*self.detached, *([self.staging] if self.staging is not None else [])]

    def revert(self) -> None:
        """Undo ``become_clean``: a chunk that was found was freed before it was held back."""
        before = self._before
        if before is None:
            return
        self.entry, self._recipe = before.entry, before.recipe
        self.buffer, self.staging = before.buffer, before.staging
        self.dirty, self.cutter = before.dirty, before.cutter
        if self.staging is not None:
            self.detached.remove(self.staging)
        if self.cutter is not None:
            self.cutter.stop_at(0)  # what it found may be what was freed
        self._before = None

    def confirm(self) -> list[Staging]:
        """The chunks are durable: return the staging files that are no longer needed."""
        self._before = None
        self.lost = False
        detached, self.detached = self.detached, []
        return detached
