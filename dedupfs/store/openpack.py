"""The record packs this process owns: taking one over or making one, sealing, committing, closing.

Knows no record's content. Source: docs/format.md, "Packs" and "Write order".
"""

import logging
from pathlib import Path

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format.keys import (
    META_COUNTER,
    META_OPEN,
    PackRow,
    decode_count,
    decode_pack_key,
    decode_pack_row,
    encode_pack_key,
    encode_pack_row,
)
from dedupfs.format.pack import PACK_HEADER_BYTES
from dedupfs.model import PackKind, StoreConfig
from dedupfs.store.commit import PackState
from dedupfs.store.db import Database, Table
from dedupfs.store.disk import Disk, File
from dedupfs.store.layout import Layout
from dedupfs.store.owner import close_lock, open_lock, same_file
from dedupfs.store.packs import PackFiles, PackWriter
from dedupfs.store.scan import Damage, PackScanner
from dedupfs.store.transaction import Transaction

log = logging.getLogger(__name__)

PACK_COUNTER = "pack"


def is_committed(path: Path) -> bool:
    """Whether a pack's file says by itself that an index has known it: it is read-only.

    A record pack becomes that behind the commit that seals it. A verbatim pack is it from the
    start, but its number is committed before.
    """
    return not path.stat().st_mode & 0o222


def older_index(path: Path) -> CorruptError:
    """Return the error for a committed pack whose number the index has not given yet."""
    return CorruptError(
        f"{path} is there already: the index is older than the packs; run dedupfs reindex"
    )


class OpenPacks:
    """The pack that is appended to, and sealed ones that are not committed yet."""

    def __init__(
        self, layout: Layout, disk: Disk, files: PackFiles, db: Database, config: StoreConfig
    ) -> None:
        self._layout = layout
        self._disk = disk
        self._files = files
        self._db = db
        self._hash_seed = config.hash_seed
        self._bytes_max = config.pack_bytes_max
        self._writer: PackWriter | None = None
        self._sealed: list[PackWriter] = []

    def _all(self) -> list[PackWriter]:
        return [*self._sealed, self._writer] if self._writer is not None else list(self._sealed)

    def writer(self, txn: Transaction | None) -> PackWriter:
        """Return the pack to append to, sealing a full one first.

        ``txn`` is the caller's write transaction if one is under way: there is only one at a time.
        """
        writer = self._writer
        if writer is not None and writer.stop < self._bytes_max:
            return writer
        if writer is not None:
            writer.seal()
            log.info("pack sealed pack=%d bytes=%d", writer.pack, writer.stop)
            self._sealed.append(writer)
            self._writer = None
        writer = self._take_over() or self._make(txn)
        self._writer = writer
        return writer

    def _open_packs(self) -> list[int]:
        """Return the packs that are not sealed and not this process's."""
        mine = {writer.pack for writer in self._all()}
        with self._db.reading() as txn:
            packs = [
                decode_pack_key(key[len(META_OPEN) :])
                for key, _ in txn.scan(Table.META, prefix=META_OPEN)
            ]
        return [pack for pack in packs if pack not in mine]

    def _take_over(self) -> PackWriter | None:
        """Take an open pack whose process has ended, cutting off what it had not committed."""
        for pack in self._open_packs():
            try:
                taken = self._claim(pack)
            except StoreError as exc:  # another user's file, say: there are other packs
                log.info("pack cannot be taken over pack=%d: %s", pack, exc)
                continue
            if taken is not None:
                return self._start(taken[0], pack, taken[1])
        return None

    def drop_tails(self) -> None:
        """Cut off what ended processes appended and never committed.

        No index speaks of it, but a rebuild would: of a snapshot that was never added, or removed.
        """
        for pack in self._open_packs():
            try:
                if not self._has_tail(pack):
                    continue
                taken = self._claim(pack)
                if taken is not None:
                    self._disk.fdatasync(taken[0])
                    close_lock(taken[0])
            except StoreError as exc:  # another user's file, say
                log.info("pack tail stays pack=%d: %s", pack, exc)
        self._drop_unborn()

    def _drop_unborn(self) -> None:
        """Remove packs whose number was taken back with the transaction that they were made in."""
        with self._db.reading() as txn:
            row = txn.get(Table.META, META_COUNTER + PACK_COUNTER.encode())
        pack = 1 + (decode_count(row) if row is not None else 0)
        while self._disk.link_count(path := self._layout.pack(pack, PackKind.RECORDS)):
            if is_committed(path):
                raise older_index(path)
            try:
                file = open_lock(self._disk, path, write=True)
            except (FileNotFoundError, StoreError) as exc:  # just removed, or another user's
                log.info("pack without a row stays pack=%d: %s", pack, exc)
                return
            if self._disk.lock(file):  # else it is just being made
                log.info("pack without a row removed pack=%d", pack)
                self._disk.unlink(path)
            close_lock(file)
            pack += 1

    def _has_tail(self, pack: int) -> bool:
        try:
            file = self._disk.open(self._layout.pack(pack, PackKind.RECORDS))
        except FileNotFoundError:
            return False
        row = self._row_of(pack)
        return row is not None and self._disk.size(file) > row.committed_bytes

    def _row_of(self, pack: int) -> PackRow | None:
        with self._db.reading() as txn:
            found = txn.get(Table.PACKS, encode_pack_key(pack))
        return decode_pack_row(found) if found is not None else None

    def _claim(self, pack: int) -> tuple[File, int] | None:
        """Lock a pack without an owner and cut its tail off; return it and its committed bytes."""
        file = self._lock_file(pack)
        if file is None:
            return None
        row = self._row_of(pack)  # only now: its last owner may have committed until now
        if row is None or row.sealed:
            if row is None and not self._disk.size(file):  # made by our look alone
                self._disk.unlink(file.path)
            close_lock(file)
            return None
        size = self._disk.size(file)
        if size < row.committed_bytes:
            log.error(
                "pack shorter than committed pack=%d bytes=%d committed=%d",
                pack,
                size,
                row.committed_bytes,
            )
            close_lock(file)
            return None
        if size > row.committed_bytes:
            self._cut_tail(file, pack, row)
        return file, row.committed_bytes

    def _cut_tail(self, file: File, pack: int, row: PackRow) -> None:
        """Drop what was not committed, unless the row cannot be right about where that starts.

        Raises:
            CorruptError: it says so of a place inside a record.
        """
        if not self._is_end(file, pack, row):
            raise CorruptError(
                f"the index says that {file.path} ends at {row.committed_bytes}, which is inside a "
                "record; run dedupfs reindex"
            )
        log.info(
            "pack tail dropped pack=%d bytes=%d", pack, self._disk.size(file) - row.committed_bytes
        )
        self._disk.truncate(file, row.committed_bytes)

    def _is_end(self, file: File, pack: int, row: PackRow) -> bool:
        """Whether a record may end where the row says that what is committed does.

        Mostly the header of what comes next tells; only one that a power cut tore has the whole
        pack walked over, which may take seconds.
        """
        if row.committed_bytes <= PACK_HEADER_BYTES and not row.live_bytes:
            return True
        scanner = PackScanner(self._disk, file, pack, self._hash_seed)
        return scanner.is_header(row.committed_bytes) or any(
            found.stop == row.committed_bytes
            for found in scanner.scan()
            if not isinstance(found, Damage)
        )

    def _lock_file(self, pack: int) -> File | None:
        path = self._layout.pack(pack, PackKind.RECORDS)
        self._files.make_directory(path)
        file = open_lock(self._disk, path, create=True)
        if self._disk.lock(file) and same_file(file, path):
            self._disk.fsync_dir(path.parent)
            return file
        close_lock(file)
        return None

    def _start(self, file: File, pack: int, committed_bytes: int) -> PackWriter:
        return PackWriter(self._disk, file, pack, self._hash_seed, committed_bytes)

    def _make(self, txn: Transaction | None) -> PackWriter:
        while True:
            if txn is not None:
                pack = _add_pack(txn)
            else:
                with self._db.writing() as own:
                    pack = _add_pack(Transaction(own))
            file = self._lock_file(pack)
            if file is not None:  # else another process was faster to take it over
                if is_committed(file.path):
                    raise older_index(file.path)
                self._disk.truncate(file, 0)
                writer = self._start(file, pack, 0)
                writer.born_in_transaction = txn is not None
                return writer

    def read_unflushed(self, pack: int, pack_offset: int, length: int) -> bytes | None:
        """Return bytes that are not in the pack's file yet; None when they are. Any thread."""
        writer = self._writer
        if writer is None or writer.pack != pack:
            return None
        return writer.read_unflushed(pack_offset, length)

    def sync(self) -> None:
        """Make everything appended durable."""
        for writer in self._all():
            writer.sync()

    @property
    def sync_failed(self) -> bool:
        """Whether what was appended must be appended anew."""
        return any(writer.sync_failed for writer in self._all())

    def erase(self, pack: int, start: int, stop: int) -> None:
        """Turn a record that was appended but not committed into a free range."""
        for writer in self._all():
            if writer.pack == pack:
                writer.erase(start, stop)

    def states(self) -> list[PackState]:
        """Return how far each pack reaches."""
        return [
            PackState(writer.pack, writer.stop, sealed=writer is not self._writer)
            for writer in self._all()
        ]

    def committed(self) -> None:
        """Note that ``states`` are in the index now."""
        for writer in self._all():
            writer.committed_bytes = writer.stop
            writer.born_in_transaction = False
        for writer in self._sealed:
            try:
                writer.finish()
            except StoreError as exc:  # the pack is committed; only its mode is not as it should
                log.warning("pack stays writable pack=%d: %s", writer.pack, exc)
        self._sealed.clear()

    def rolled_back(self) -> list[int]:
        """Remove packs that were made in a transaction that is undone; return their numbers."""
        gone = [writer for writer in self._all() if writer.born_in_transaction]
        for writer in gone:
            writer.discard()
        self._sealed = [writer for writer in self._sealed if writer not in gone]
        if self._writer in gone:
            self._writer = None
        return [writer.pack for writer in gone]

    def give_up_idle(self) -> None:
        """Let go of the pack that is appended to when all in it is committed.

        Another process may go on with it then, and gc remove it when nothing lives in it.
        """
        writer = self._writer
        if writer is not None and writer.stop == writer.committed_bytes:
            self._writer = None
            writer.close()

    def abandon(self) -> None:
        """In a forked child: leave the packs, and their locks, to the parent alone."""
        for writer in self._all():
            writer.abandon()

    def close(self) -> list[int]:
        """Cut off what is not committed and give every pack up; return their numbers."""
        writers = self._all()
        self._writer = None
        self._sealed = []
        for writer in writers:
            writer.close()
        return [writer.pack for writer in writers]


def _add_pack(txn: Transaction) -> int:
    pack = txn.next_number(PACK_COUNTER)
    key = encode_pack_key(pack)
    txn.put(Table.PACKS, key, encode_pack_row(PackRow(PackKind.RECORDS, False, 0, 0)))
    txn.put(Table.META, META_OPEN + key, b"")
    return pack
