"""What a view did since its last fold: an append-only file that survives SIGKILL.

Knows frames and the file, not what an edit means (replay.py does). Source: docs/format.md,
"Journal".
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from dedupfs.errors import CorruptError, StoreError, TornRecordError
from dedupfs.format.journal import (
    Edit,
    Edits,
    JournalHeader,
    decode_edits,
    decode_header,
    encode_edits,
    encode_header,
)
from dedupfs.store.disk import Disk, File
from dedupfs.store.syncing import Syncer

PREFIX = "journal."
_UNPUBLISHED_SUFFIX = ".new"
_HEAD_BYTES = 1 << 16
"""No header is longer."""
_AHEAD_BYTES_MIN = 64 << 10
_AHEAD_BYTES_MAX = 512 << 10
"""How many zeros are written behind the records of a journal that is synced again and again: as
many as it has bytes of records, so that it takes no more than twice its room."""


def journal_path(directory: Path, generation: int) -> Path:
    """Return the journal of a generation of the view whose files are in ``directory``."""
    return directory / f"{PREFIX}{generation:08d}"


class _Sync:
    """What a sync of a journal does.

    Apart from ``Journal``: bound to that it would make a cycle, and the blocks of a deleted journal
    would wait for the garbage collector.
    """

    def __init__(self, disk: Disk, file: File) -> None:
        self._disk = disk
        self._file = file
        self.is_done = False

    def __call__(self) -> None:
        self._disk.fdatasync(self._file)
        self.is_done = True


class Journal:
    """One generation's journal, open for appending."""

    def __init__(self, disk: Disk, path: Path, file: File, size: int, generation: int) -> None:
        self._disk = disk
        self.path = path
        self.generation = generation
        self._file = file
        self.size = size
        self._ready_stop = size
        self._sync = _Sync(disk, file)
        self.syncer = Syncer(path, self._sync)
        """If it has failed, the next fold starts another journal."""
        self.syncer.changed()  # whoever wrote what is there already may not have synced it
        self.declared: set[int] = set()
        """Inodes whose place this journal states, so that it can be read without the index."""
        self.ready: set[int] = set()
        """Directories, by number, that edits can speak of: what must come before is said."""

    @classmethod
    def create(cls, disk: Disk, directory: Path, header: JournalHeader) -> "Journal":
        """Begin a new journal; it counts for nothing before it is published.

        Raises:
            StoreFullError, StoreError: the disk refused; no journal is left behind.
        """
        path = journal_path(directory, header.generation)
        path = path.with_name(path.name + _UNPUBLISHED_SUFFIX)
        file = disk.open(path, create=True)
        data = encode_header(header)
        try:
            disk.truncate(file, 0)
            disk.pwrite(file, [data], 0)
        except StoreError:
            disk.unlink(path)
            raise
        return cls(disk, path, file, len(data), header.generation)

    def publish(self) -> None:
        """Make all records durable, then the name by which it is found without the index.

        In this order: a rebuild takes the latest journal to be whole. Every other name in the
        directory is durable then, too.

        Raises:
            StoreFullError, StoreError: the disk refused; it is to be removed.
        """
        self.sync()
        path = journal_path(self.path.parent, self.generation)
        self._disk.rename(self.path, path)
        self.path = path
        self._disk.fsync_dir(path.parent)

    @classmethod
    def reopen(
        cls, disk: Disk, path: Path, size: int, generation: int, *, torn: bool = False
    ) -> "Journal":
        """Open a journal whose valid part is ``size`` bytes long; what is behind is cut off.

        ``torn``: that is not zeros alone. Then durably: a record that takes the place of a torn one
        may be as long, and a power cut could bring back what came behind.
        """
        file = disk.open(path, write=True)
        disk.truncate(file, size)
        if torn:
            disk.fdatasync(file)
        return cls(disk, path, file, size, generation)

    @property
    def fd(self) -> int:
        """Descriptor of the file."""
        return self._file.fd

    def append(self, time_ns: int, edits: Sequence[Edit]) -> None:
        """Write one record; when this returns, SIGKILL cannot lose it (a power cut can).

        Raises:
            StoreFullError, StoreError: nothing was appended.
        """
        data = encode_edits(time_ns, edits)
        stop = self.size + len(data)
        if self._sync.is_done and stop > self._ready_stop:
            self._write_ahead()
        try:
            self._disk.pwrite(self._file, [data], self.size)
        except StoreError:
            self._cut_off()
            raise
        self.size = stop
        self.syncer.changed()

    def _write_ahead(self) -> None:
        """Write zeros where the next records will be: while somebody syncs one after the other.

        Bytes in blocks that are allocated, inside of the file, reach the disk without the file
        system's own journal, and that has everybody's changes to wait for.
        """
        self._sync.is_done = False
        zeros = bytes(min(max(self.size, _AHEAD_BYTES_MIN), _AHEAD_BYTES_MAX))
        try:
            self._disk.pwrite(self._file, [zeros], self.size)
        except StoreError:  # the record may have room without
            self._cut_off()
        else:
            self._ready_stop = self.size + len(zeros)

    def _cut_off(self) -> None:
        """Take back what a failed write has left behind the last record."""
        self._disk.truncate(self._file, self.size)
        self._ready_stop = self.size

    def sync(self) -> None:
        """Make all records durable.

        Raises:
            StoreFullError, StoreError: they are not, now or since an earlier sync failed.
        """
        self.syncer.sync(self.syncer.changes)

    def remove(self) -> None:
        """Delete the file; its descriptor goes with the last user."""
        self._disk.unlink(self.path)


def read_header(path: Path) -> JournalHeader:
    """Return what the journal at ``path`` says of itself.

    Raises:
        OSError, StoreError: it cannot be read, or is none.
    """
    with path.open("rb") as journal:
        return decode_header(journal.read(_HEAD_BYTES))[0]


def read_journal(data: bytes) -> tuple[JournalHeader, int, Iterator[tuple[Edits, int]]]:
    """Return the header, its length, and the records up to a torn tail with the offset behind each.

    Nothing behind the first record that is cut short or fails its checksum can be trusted: a power
    cut may leave any of the last blocks unwritten.

    Raises:
        CorruptError, TornRecordError, FormatVersionError: the header; the last also a record that
            is whole, but not of this version.
    """
    header, start = decode_header(data)

    def records() -> Iterator[tuple[Edits, int]]:
        journal_offset = start
        while journal_offset < len(data):
            try:
                edits, journal_offset = decode_edits(data, journal_offset)
            except (TornRecordError, CorruptError):
                return
            yield edits, journal_offset

    return header, start, records()
