"""A file on the store's own file system becomes a verbatim pack, and no byte of it is copied.

Cloned (XFS, btrfs) the file stays its owner's and the pack is another inode that shares its blocks.
Linked, the inode itself is the pack from then on: nobody else may have it open for writing, nor may
it have names that nobody asked about, so whoever links holds a lease of it and knows its names.
Its bytes are read, to be cut and hashed, and where the store has a chunk already the file keeps it
all the same. Knows no names.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from dedupfs.errors import StoreError, StoreFullError
from dedupfs.model import Extent, RecordId, RecordKind
from dedupfs.recipe import append_extent, hole_extents
from dedupfs.store import Store
from dedupfs.store.cutter import Cut, Cutter, Foresight
from dedupfs.store.disk import File
from dedupfs.store.match import match_chunks
from dedupfs.store.owner import close_lock, noted
from dedupfs.transfer.extents import clone
from dedupfs.transfer.leases import Lease
from dedupfs.transfer.reader import (
    BLOCK_BYTES,
    Block,
    ReadAhead,
    data_segments,
    read_blocks,
)
from dedupfs.transfer.verbatim import temporary_path

OnBytes = Callable[[int], None]
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_NOT_HERE = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})


@dataclass(frozen=True, slots=True)
class Adopted:
    """A file's extents, and the pack that it became; the next transaction commits both.

    ``pack``: 0 when the store had every chunk, and no pack was asked for all the same.
    """

    extents: list[Extent]
    pack: int


def adopted_mode(mode: int) -> int:
    """Return the permissions of a file that is a pack: nobody may write to it."""
    return stat.S_IMODE(mode) & ~0o222 | 0o400


class CannotAdoptError(Exception):
    """It has to be copied: other file systems, clones that there are not, crafted bytes."""


class BrokenLeaseError(StoreError):
    """Somebody opened the file for writing while it was adopted; nothing was changed."""


def adopt_clone(
    store: Store, fd: int, on_bytes: OnBytes | None = None, *, needs_pack: bool = True
) -> Adopted:
    """Make a clone of the file ``fd`` a verbatim pack.

    What others write to the file meanwhile is in the clone or is not.

    Raises:
        CannotAdoptError: the file system has no clones.
    """
    path = temporary_path(store)
    with _temporary(path, lambda: os.open(path, _NEW_FILE, 0o600)) as copy_fd:
        with _disk_errors(path):
            if not clone(fd, copy_fd):
                raise CannotAdoptError
        return _adopt(store, path, copy_fd, 0o400, None, on_bytes, needs_pack)


def adopt_copy(store: Store, fd: int, on_bytes: OnBytes | None = None) -> Adopted:
    """Make a copy of the file ``fd`` a verbatim pack: where neither clone nor link will do."""
    path = temporary_path(store)
    with _temporary(path, lambda: os.open(path, _NEW_FILE, 0o600)) as copy_fd:
        status = os.fstat(fd)
        for start, stop in data_segments(fd, status.st_size, status.st_blocks * 512):
            _copy(fd, copy_fd, start, stop, path)
        with _disk_errors(path):
            os.truncate(copy_fd, status.st_size)
            os.utime(copy_fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        return _adopt(store, path, copy_fd, 0o400, None, on_bytes)


def _copy(source_fd: int, target_fd: int, start: int, stop: int, path: Path) -> None:
    while start < stop:
        data = memoryview(os.pread(source_fd, min(BLOCK_BYTES, stop - start), start))
        if not data:
            return
        with _disk_errors(path):
            while data:
                written = os.pwrite(target_fd, data, start)
                start += written
                data = data[written:]


def adopt_link(
    store: Store,
    fd: int,
    lease: Lease,
    on_bytes: OnBytes | None = None,
    *,
    needs_pack: bool = True,
) -> Adopted:
    """Make the file ``fd`` itself a verbatim pack.

    It loses its write permissions, and keeps all else.

    Raises:
        CannotAdoptError: it cannot be linked to from the store.
        BrokenLeaseError: somebody wants to write to it.
    """
    path = temporary_path(store)
    mode = stat.S_IMODE(os.fstat(fd).st_mode)

    def link() -> int:
        # With a directory to start from, needless though it is, Python follows the link.
        os.link(b"/proc/self/fd/%d" % fd, path, src_dir_fd=fd, follow_symlinks=True)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    with _temporary(path, link) as linked_fd:
        try:
            return _adopt(store, path, linked_fd, adopted_mode(mode), lease, on_bytes, needs_pack)
        except BaseException:
            os.fchmod(fd, mode)
            raise


@contextmanager
def _temporary(path: Path, make: Callable[[], int]) -> Iterator[int]:
    """Have a name in the store, locked so that gc sees who made it, as long as it is needed."""
    try:
        file = noted(lambda: File(make(), path))
    except OSError as exc:
        if exc.errno in _NOT_HERE:
            raise CannotAdoptError from exc
        raise _translated(path, exc) from exc
    try:
        with _disk_errors(path):
            flock(file.fd, LOCK_EX | LOCK_NB)
        yield file.fd
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
        close_lock(file)


def _adopt(
    store: Store,
    path: Path,
    fd: int,
    mode: int,
    lease: Lease | None,
    on_bytes: OnBytes | None,
    needs_pack: bool = True,
) -> Adopted:
    content = read_content(store, fd, on_bytes)
    if not content.fresh and not needs_pack:
        return Adopted(content.extents, 0)
    if lease is not None:
        os.fchmod(fd, mode)
        if not lease.holds:
            raise BrokenLeaseError(f"{path}: somebody opened it for writing meanwhile")
    pack = store.put_verbatim(path, _places(content.fresh), known=_places(content.known), mode=mode)
    return Adopted(content.extents, pack)


_Places = dict[RecordId, tuple[int, int]]


def _places(chunks: _Places) -> list[tuple[int, Extent]]:
    return [(offset, Extent(chunk, length)) for chunk, (offset, length) in chunks.items()]


def read_content(store: Store, fd: int, on_bytes: OnBytes | None = None) -> "Content":
    """Cut a file that does not change and look its chunks up; nothing is stored.

    Raises:
        CannotAdoptError: two of its chunks have one id. BrokenLeaseError: it did change.
    """
    content = Content(store, fd)
    status = os.fstat(fd)
    cutter = Cutter(
        store.chunker, lambda data: store.digest(RecordKind.CHUNK, data), Foresight(store)
    )
    with ReadAhead(read_blocks(fd, status, cutter)) as blocks:
        for block in blocks:
            content.add(block)
            if on_bytes is not None:
                on_bytes(block.length)
    if content.size != status.st_size:
        raise BrokenLeaseError(f"a file became shorter while it was read ({status.st_size} bytes)")
    return content


class Content:
    """A file's extents, and the first places of its chunks: of new ones, and of known ones."""

    def __init__(self, store: Store, fd: int) -> None:
        self._store = store
        self._fd = fd
        self.extents: list[Extent] = []
        self.fresh: _Places = {}
        self.known: _Places = {}
        self.size = 0

    def add(self, block: Block) -> None:
        """Take the next block."""
        chunks = [Extent(cut.digest, cut.length) for cut in block.cuts]
        known = [False] * len(chunks)
        if block.data is not None:
            known = match_chunks(self._store, chunks, block.data)
        file_offset = block.file_offset
        for cut, is_known in zip(block.cuts, known, strict=True):
            if cut.payload is None:
                for extent in hole_extents(cut.length):
                    append_extent(self.extents, extent)
            elif is_known:
                self._know(cut.digest, file_offset, cut.length)
            else:
                self._find(cut, cut.payload, file_offset)
            file_offset += cut.length
        self.size = file_offset

    def _know(self, chunk_id: RecordId, file_offset: int, length: int) -> None:
        self.known.setdefault(chunk_id, (file_offset, length))
        self.extents.append(Extent(chunk_id, length))

    def _find(self, cut: Cut, payload: memoryview, file_offset: int) -> None:
        chunk_id, is_known = self._store.probe_chunk(payload, digest=cut.digest)
        if is_known:
            self._know(chunk_id, file_offset, cut.length)
            return
        start, length = self.fresh.setdefault(chunk_id, (file_offset, cut.length))
        if start != file_offset and os.pread(self._fd, length, start) != bytes(payload):
            # Two new chunks of one id, which only a crafted file has: a pack cannot say so.
            raise CannotAdoptError
        self.extents.append(Extent(chunk_id, cut.length))


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise _translated(path, exc) from exc


def _translated(path: Path, exc: OSError) -> StoreError:
    kind = StoreFullError if exc.errno in (errno.ENOSPC, errno.EDQUOT) else StoreError
    return kind(f"{path}: {exc.strerror}")
