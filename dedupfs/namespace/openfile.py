"""One file that is open or changed: its settled extents, and the bytes that are newer.

A file is *clean* (all bytes are chunks), *buffered* (small: all bytes in memory, and in the
journal) or *staged* (changed ranges in a staging file). It takes over what is written down already,
for a request (writing.py) and for replay alike. Knows no names and no journal.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from dedupfs.format.journal import Adopt, Dirty, Edit, Stage, Truncate, Write
from dedupfs.format.tree import encode_extents
from dedupfs.model import ATIME_EPOCH_NS, HOLE, Extent, RecordId, TreeEntry
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

    def __init__(self, store: Store, inode: int, entry: TreeEntry) -> None:
        self.store = store
        self.buffer_bytes_max = BUFFER_CHUNKS * store.config.chunk_bytes_average
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
        self.untold: list[Edit] = []
        """What the journal has to be told before any other edit of the bytes: how it was cut."""
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

    # --- taking over what is written down --------------------------------------------------------

    def changed(self, now_ns: int) -> None:
        """Note that the bytes changed at ``now_ns``; when they were read last stays as it was.

        0: the kernel says when (``ViewState.kernel_keeps_times``).
        """
        self.unsettled = True
        if not now_ns:
            return
        if not self.entry.atime_ns:
            atime_ns = self.mtime_ns or ATIME_EPOCH_NS
            self.entry = msgspec.structs.replace(self.entry, atime_ns=atime_ns)
        self.mtime_ns = now_ns
        self.ctime_ns = 0

    @property
    def journaled_stop(self) -> int:
        """Below here lie settled bytes, or bytes that are in the journal; behind, staged ones."""
        return max(self.recipe.size, self._journaled_stop)

    def note_journaled(self, start: int, stop: int) -> None:
        """Take over that the journal holds the bytes of ``[start, stop)``."""
        self.dirty.add(start, stop)
        self.raise_journaled_stop(stop)

    def raise_journaled_stop(self, stop: int) -> None:
        """Let what is written below ``stop`` from now on be journaled: replay writes there."""
        self._journaled_stop = max(self._journaled_stop, stop)

    def become_buffered(self, keep: int) -> None:
        """Take the first ``keep`` bytes of a clean file into memory."""
        self.buffer = bytearray(self.read(0, keep)) if keep else bytearray()

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
        self.untold = []
        self.dirty = Ranges()
        self.dirty.add(self.recipe.size, _WITHOUT_END)
        self._journaled_stop = journaled_bytes
        self._new = not self.recipe.size
        if self._new:
            self.cutter = OrderedCutter(self.store)

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

    def apply_adopt(self, start: int, extents: Sequence[Extent]) -> None:
        """Take over extents that are in the journal already."""
        self.recipe.extend(hole_extents(start - self.recipe.size))
        self.recipe.extend(extents)
        self.dirty.remove(start, self.recipe.size)

    # --- what a fold asks ------------------------------------------------------------------------

    @property
    def may_be_carried(self) -> bool:
        """Whether its bytes may stay in the staging file through a fold."""
        return self.staging is not None and not self.staging.syncer.failed

    def sync(self) -> None:
        """Make the staging file durable, with the time of the last write or what utimes set."""
        if self.staging is not None:
            self.staging.touch(self.mtime_ns)
            self.staging.sync()

    def carried(self) -> None:
        """A new journal counts, which does not repeat bytes: ``restated`` is all that it says."""
        self._journaled_stop = 0
        self.untold = []

    def adopted_ids(self) -> list[RecordId]:
        """Return the chunks that a new file has adopted, which no tree refers to yet."""
        if not self._new or self.staging is None:
            return []
        return [chunk_id for chunk_id in self.recipe.ids if chunk_id != HOLE]

    def restated(self, *, times_told: bool) -> list[Edit]:
        """Return the edits that say in a new journal what is not settled.

        The staging file must be durable: the new journal does not repeat bytes. ``times_told``: the
        kernel keeps its times, so that the journal tells all of them.
        """
        if self.buffer is not None:
            return [Truncate(self.inode, 0), Write(self.inode, 0, bytes(self.buffer))]
        if self.staging is None:
            return []
        kept_bytes = 0 if self._new else self.recipe.size
        edits: list[Edit] = [
            Stage(self.inode, self.staging.number, times_told),
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
        self.entry = self.named_entry()  # of a lost file only times were newer
        self.lost = False
        self.untold = []
        detached, self.detached = self.detached, []
        return detached
