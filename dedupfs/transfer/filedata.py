"""The bytes of one source file -> extents in the store; says when the file changed meanwhile.

Decides how a file is read (inline or ahead, in a thread) and where it goes (record pack or a file
of its own). Knows no names.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from dedupfs.model import FILE_BYTES_MAX, Extent, RecordId, RecordKind
from dedupfs.namespace.contents import total_bytes
from dedupfs.recipe import append_extent, hole_extents
from dedupfs.store import Store
from dedupfs.store.cutter import Cutter, Foresight
from dedupfs.transfer.adoption import (
    Adopted,
    BrokenLeaseError,
    CannotAdoptError,
    adopt_clone,
    adopt_link,
)
from dedupfs.transfer.leases import leased
from dedupfs.transfer.reader import Block, ReadAhead, read_blocks
from dedupfs.transfer.verbatim import LargeFile

INLINE_BYTES_MAX = 1 << 20
"""A thread costs more than it gains for files smaller than this."""
READS_MAX = 2

OnBlock = Callable[[int, Sequence[Extent]], None]
"""Hears of the file bytes of each block, and of the extents that are in the store by now."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file's extents, its status when reading began, and whether it held still."""

    extents: Sequence[Extent]
    status: os.stat_result
    is_stable: bool


class FileStorer:
    """Stores files one after the other."""

    def __init__(
        self, store: Store, on_block: OnBlock, *, adopt: bool = False, threads: bool = True
    ) -> None:
        """``adopt``: make large files packs as they are, where that can be done.

        ``threads``: whether this process may have others, to read ahead.
        """
        self.cloned = self.linked = 0
        """Files that became packs: by a clone, and as they are, read-only from then on."""
        self._adopts = adopt
        self._threads = threads
        self._inline_bytes_max = INLINE_BYTES_MAX if threads else FILE_BYTES_MAX
        self._store = store
        self._on_block = on_block
        self._begun: dict[int, ReadAhead] = {}

    def begin(self, fd: int, status: os.stat_result) -> None:
        """Have the next file read already, if it is large, while the last is put away."""
        if status.st_size >= self._inline_bytes_max and not (
            self._adopts and self._is_large(status)
        ):
            self._begun[fd] = ReadAhead(self._blocks(fd, status))

    def close(self) -> None:
        """Stop reading what was begun; before the descriptors are closed."""
        for reading in self._begun.values():
            reading.close()
        self._begun.clear()

    def put(self, fd: int, status: os.stat_result) -> Stored:
        """Read and store the file; once more when it changed meanwhile.

        Raises:
            OSError: the source could not be read. StoreError: the store could not take it.
        """
        if self._adopts and self._is_large(status):
            adopted = self._adopt(fd, status)
            if adopted is not None:
                return Stored(adopted.extents, status, True)
        reads = 0
        while True:
            extents = self._put_once(fd, status)
            reads += 1
            after = os.fstat(fd)
            is_stable = _is_same(status, after) and total_bytes(extents) == after.st_size
            if is_stable or reads == READS_MAX:
                return Stored(extents, status, is_stable)
            status = after

    def _adopt(self, fd: int, status: os.stat_result) -> Adopted | None:
        """Make the file a pack without copying it; None: it has to be read and stored."""

        def on_bytes(length: int) -> None:
            self._on_block(length, ())

        try:
            adopted = adopt_clone(self._store, fd, on_bytes, needs_pack=False)
        except CannotAdoptError:
            return self._adopt_link(fd, status, on_bytes)
        if not _is_same(status, os.fstat(fd)):
            return None
        self.cloned += adopted.pack > 0
        return adopted

    def _adopt_link(
        self, fd: int, status: os.stat_result, on_bytes: Callable[[int], None]
    ) -> Adopted | None:
        if status.st_nlink > 1 or status.st_uid != os.geteuid():
            return None  # somebody could write to it by another name, or make it writable again
        try:
            with leased(fd) as lease:
                if not _is_same(status, os.fstat(fd)):
                    return None
                adopted = adopt_link(self._store, fd, lease, on_bytes, needs_pack=False)
        except (CannotAdoptError, BrokenLeaseError, OSError):
            return None  # reading it the ordinary way tells what is wrong, if anything is
        self.linked += adopted.pack > 0
        return adopted

    def _put_once(self, fd: int, status: os.stat_result) -> Sequence[Extent]:
        with self._reading(fd, status) as source:
            if self._is_large(status):
                return self._put_large(source)
            extents: list[Extent] = []
            for block in source:
                self._put_block(block, extents)
                self._on_block(block.length, extents)
            return extents

    def _is_large(self, status: os.stat_result) -> bool:
        return status.st_size >= self._store.config.verbatim_bytes_min

    def _reading(self, fd: int, status: os.stat_result) -> AbstractContextManager[Iterable[Block]]:
        begun = self._begun.pop(fd, None)
        if begun is not None:
            return begun
        blocks = self._blocks(fd, status)
        is_inline = status.st_size < self._inline_bytes_max
        return nullcontext(blocks) if is_inline else ReadAhead(blocks)

    def _blocks(self, fd: int, status: os.stat_result) -> Iterator[Block]:
        foresight = Foresight(self._store) if self._is_large(status) else None
        return read_blocks(fd, status, Cutter(self._store.chunker, self._digest, foresight))

    def _digest(self, payload: memoryview) -> RecordId:
        return self._store.digest(RecordKind.CHUNK, payload)

    def _put_block(self, block: Block, extents: list[Extent]) -> None:
        put = self._store.put
        for length, digest, payload in block.cuts:
            if payload is None:
                for extent in hole_extents(length):
                    append_extent(extents, extent)
            else:
                extents.append(Extent(put(RecordKind.CHUNK, payload, digest=digest), length))

    def _put_large(self, source: Iterable[Block]) -> Sequence[Extent]:
        with LargeFile(self._store, threads=self._threads) as large:
            for block in source:
                large.add(block)
                self._on_block(block.length, large.extents if large.is_poured else ())
            return large.finish()


def _is_same(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether nothing was written in between, as far as the kernel tells."""
    return (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )
