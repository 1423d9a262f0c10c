"""``Store``: put and get records, read pieces of chunks, and the one commit point.

Knows no names, inodes or snapshots: those are other layers' rows and payloads. Source:
docs/format.md; docs/architecture.md, "Paths" and "Concurrency contract".
"""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

from dedupfs.chunking import Chunker, ChunkingParams
from dedupfs.errors import CorruptError, StoreError, UsageError
from dedupfs.format.keys import decode_location, pack_record_row
from dedupfs.format.pack import CHUNK_BYTES_MAX, RECORD_BYTES_MAX, record_id
from dedupfs.format.tree import references
from dedupfs.model import Extent, Location, RecordId, RecordKind, StoreConfig
from dedupfs.recipe import Piece
from dedupfs.store import memory
from dedupfs.store.codec import Encoder
from dedupfs.store.committer import Committer
from dedupfs.store.db import Database, ReadTxn, Table
from dedupfs.store.disk import Buffer, Disk
from dedupfs.store.layout import Layout, make_config, read_config
from dedupfs.store.lookup import Finder, Lookup
from dedupfs.store.opening import make_store, open_index
from dedupfs.store.openpack import OpenPacks
from dedupfs.store.owner import Owner
from dedupfs.store.packs import PackFiles
from dedupfs.store.pending import Pending, place_of
from dedupfs.store.reader import Reader
from dedupfs.store.realdisk import RealDisk
from dedupfs.store.transaction import Transaction
from dedupfs.store.verbatim import VerbatimMaker

__all__ = ["ReadTxn", "Store", "Table", "Transaction"]

log = logging.getLogger(__name__)


class Store:
    """One open store. One object per process and store; ``close`` it, or use it in ``with``.

    Threads: one thread at a time calls ``put``, ``put_verbatim`` and ``transaction``; any thread
    may call ``get``, ``locate``, ``read``, ``read_cached``, ``digest`` and ``reading`` meanwhile.
    Not usable in a forked child.

    Attributes:
        path, config: the store's directory; dedupfs.json.
        chunker: cuts as every process of this store does.
        owner: names this process in ``Transaction.pin``; such pins die with the process.
        packs: the record packs that this process appends to.
        punches: False once the file system has refused to punch a hole.
    """

    def __init__(self, path: Path, config: StoreConfig, db: Database, disk: Disk) -> None:
        self.path = path
        self.config = config
        self.chunker = Chunker(
            ChunkingParams(
                config.chunk_bytes_min, config.chunk_bytes_average, config.chunk_bytes_max
            )
        )
        self.layout = Layout(path)
        self.disk = disk
        self.db = db
        self._owner = Owner(self.layout, disk)
        self.owner = self._owner.name
        self._encoder = Encoder(config.compression)
        self._files = PackFiles(self.layout, disk)
        self.packs = OpenPacks(self.layout, disk, self._files, db, config)
        self._pending = Pending()
        self._lookup = Lookup(self._pending, db)
        self.reader = Reader(
            disk, self._files, self.digest, self._lookup.rows, self.packs.read_unflushed
        )
        self._finder = Finder(self._pending, self._lookup, self.reader, self.digest)
        self._committer = Committer(
            layout=self.layout,
            disk=disk,
            db=db,
            packs=self.packs,
            pending=self._pending,
            reader=self.reader,
            owner=self._owner,
        )
        self._verbatim = VerbatimMaker(
            layout=self.layout,
            disk=disk,
            files=self._files,
            db=db,
            pending=self._pending,
            lookup=self._lookup,
            reader=self.reader,
            owner=self._owner,
            put=self.put,
        )
        self.punches = True
        memory.keep_freed()

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        chunk_bytes_average: int = 65536,
        compression: str = "auto",
        disk: Disk | None = None,
        pack_bytes_max: int = 512 << 20,
        verbatim_bytes_min: int = 8 << 20,
        hash_seed: int | None = None,
    ) -> Self:
        """Make an empty store at ``path`` and open it.

        ``path`` must not exist, or be an empty directory (or what an interrupted create left).
        Chunks are a quarter of the average to four times the average, which is a power of two.
        ``hash_seed`` is random unless given.

        Raises:
            UsageError: the path holds something else (the message says what), or a bad setting.
            StoreError: the file system failed.
        """
        disk = disk or RealDisk()
        path = Path(os.path.abspath(path))
        layout = Layout(path)
        config = make_config(
            chunk_bytes_average=chunk_bytes_average,
            compression=compression,
            pack_bytes_max=pack_bytes_max,
            verbatim_bytes_min=verbatim_bytes_min,
            hash_seed=hash_seed,
        )
        return cls(path, config, make_store(layout, disk, config), disk)

    @classmethod
    def open(cls, path: Path, *, disk: Disk | None = None, create_index: bool = False) -> Self:
        """Open a store. Costs the same however large it is.

        ``create_index`` makes a missing index anew, empty: for reindex alone.

        Raises:
            UsageError: not a store.
            FormatVersionError: made by a newer dedupfs.
            CorruptError: dedupfs.json or the index is damaged.
            StoreError: the index is missing.
        """
        disk = disk or RealDisk()
        path = Path(os.path.abspath(path))
        layout = Layout(path)
        config = read_config(layout, disk)
        return cls(path, config, open_index(layout, disk, create=create_index), disk)

    def close(self) -> None:
        """Drop what is not committed, and give pins, locks and files back."""
        try:
            self.drop_pending()
            if self._owner.is_claimed:
                self._release_pins()
            self._owner.release()
        finally:
            self._files.close()
            self.db.close()

    def abandon(self) -> None:
        """In a forked child: the store is the parent's; its locks go when the parent does."""
        self._owner.abandon()
        self.packs.abandon()
        self.db.abandon()

    def claim_owner(self) -> int:
        """Return a descriptor that, kept open anywhere, keeps this process's pins alive."""
        return self._owner.claim()

    def adopt_owner(self, owner: bytes, fd: int) -> None:
        """Go on as a process that died, by the descriptor that kept its pins alive."""
        self._owner.adopt(owner, fd)
        self.owner = owner

    def _release_pins(self) -> None:
        """Let go of what this process held, so that nobody has to find out that it has ended."""
        try:
            with self.reading() as txn:
                held = next(txn.scan(Table.PINS, prefix=self.owner), None)
            if held is not None:
                with self.transaction() as txn_:
                    txn_.release_pins(self.owner)
        except StoreError as exc:
            log.warning("pins not given back yet, gc will do it: %s", exc)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # --- records -----------------------------------------------------------------------------

    def digest(self, kind: RecordKind, payload: Buffer, salt: int = 0) -> RecordId:
        """Return the id that ``payload`` has under ``salt``. Pure; any thread."""
        return record_id(self.config.hash_seed, kind, payload, salt)

    def put(
        self, kind: RecordKind, payload: bytes | memoryview, *, digest: RecordId | None = None
    ) -> RecordId:
        """Store ``payload`` unless an equal record is there; return its id.

        Equal means byte by byte: another payload of the same id only makes this one take the
        next salt. A new record is *pending*: readable here at once, in the index with the next
        transaction, gone if the process ends before. Chunks of zeros are the caller's HOLE.

        Args:
            kind: what the payload is; a tree's or recipe's references are counted when it commits.
            payload: a chunk of 1 B to 16 MiB, any other record below 4 GiB. Copied.
            digest: ``self.digest(kind, payload)`` if it is known already.

        Raises:
            StoreFullError: the disk is full; nothing has changed.
            CorruptError: the payload is not of its kind.
        """
        known, identity, salt = self._finder.find(kind, payload, digest)
        if known:
            return identity
        limit = CHUNK_BYTES_MAX if kind == RecordKind.CHUNK else RECORD_BYTES_MAX
        if len(payload) > limit:
            raise UsageError(f"a {kind.name} record has at most {limit} bytes, not {len(payload)}")
        found = [] if kind == RecordKind.CHUNK else references(kind, bytes(payload))
        codec, stored = self._encoder.encode(payload)
        writer = self.packs.writer(self._committer.active)
        size = len(payload)
        offset = writer.append(kind, codec, salt, stored, size, identity)
        self._pending.rows[identity] = pack_record_row(
            kind, codec, salt, writer.pack, offset, len(stored), size, 0
        )
        if found:
            self._pending.references[identity] = found
        return identity

    def append_again(
        self, identity: RecordId, location: Location, payload: Buffer, encoded: Buffer | None = None
    ) -> Location:
        """Append a record that the index has, as it is ``encoded`` at its location or encoded anew;
        the caller changes its row (``mend``, ``compact``)."""
        kind, salt, codec, stored = location.kind, location.salt, location.codec, encoded
        if stored is None:
            codec, stored = self._encoder.encode(payload)
        writer = self.packs.writer(self._committer.active)
        offset = writer.append(kind, codec, salt, stored, len(payload), identity)
        return Location(kind, codec, salt, writer.pack, offset, len(stored), len(payload))

    def find_chunk(
        self, payload: bytes | memoryview, *, digest: RecordId | None = None
    ) -> RecordId | None:
        """Return the id of an equal chunk in the store (pending ones included), or None."""
        known, identity, _salt = self._finder.find(RecordKind.CHUNK, payload, digest)
        return identity if known else None

    def probe_chunk(
        self, payload: bytes | memoryview, *, digest: RecordId | None = None
    ) -> tuple[RecordId, bool]:
        """Return (id, True) of an equal chunk, or (the id this chunk can have, False).

        The id is what ``digest`` gives, unless another chunk has it already.
        """
        known, identity, salt = self._finder.find(RecordKind.CHUNK, payload, digest)
        if salt and not known:
            self._pending.salts[identity] = salt
        elif not known:
            self._pending.salts.pop(identity, None)
        return identity, known

    def note_match(self, record_id: RecordId, row: bytes) -> None:
        """Note that a caller found the bytes of a committed record equal to its own.

        The next transaction refuses when another record has this id by then. ``row`` is that of
        RECORDS. ``put`` and ``find_chunk`` do this themselves.
        """
        self._finder.note_match(record_id, row)

    def get(self, record_id: RecordId, kind: RecordKind) -> bytes:
        """Return the payload of a record, decoded and verified.

        Raises:
            MissingRecordError: no such record.
            CorruptError: it is damaged, or of another kind.
        """
        row = self._lookup.row(record_id)
        if row[0] != kind:
            raise CorruptError(f"record {record_id.hex()} is of kind {row[0]}, not {kind.name}")
        try:
            return bytes(self.reader.payload(record_id, row))
        except CorruptError:
            again = self._lookup.row(record_id)  # it may have moved while we read
            if place_of(again) == place_of(row):
                raise
        return bytes(self.reader.payload(record_id, again))

    def has(self, record_id: RecordId) -> bool:
        """Whether some record, pending ones included, has this id."""
        return self._lookup.find(record_id) is not None

    def locate(self, record_id: RecordId) -> Location:
        """Return where a record lies, or raise MissingRecordError."""
        return decode_location(self._lookup.row(record_id))[0]

    def rows(self, record_ids: Sequence[RecordId]) -> list[bytes | None]:
        """Return the rows of RECORDS for several ids, pending records included. Any thread."""
        return self._lookup.rows(record_ids)

    def put_verbatim(
        self,
        file: Path,
        chunks: Sequence[tuple[int, Extent]],
        *,
        known: Sequence[tuple[int, Extent]] = (),
        mode: int = 0o400,
    ) -> int:
        """Make a finished file a verbatim pack, without copying it; return the pack's number.

        The file (regular, on the store's file system, never written to again) gets a second name
        under packs/ and ``mode``; the caller removes its own name after the transaction that
        commits this. What no chunk covers should be holes.

        Args:
            file: the file.
            chunks: (file_offset, Extent) of what is new to the store, rising; ids as
                ``probe_chunk`` gave them. A chunk that is in the store by now is left out.
            known: the same of chunks that the store has elsewhere and whose bytes the file holds,
                too, as the caller has made sure: listed in the chunk table, so that reindex finds
                this copy, and ``whole.take_over`` may make it the only one.
            mode: with no write permission for anybody.

        Raises:
            UsageError: chunks overlap or leave the file, or a transaction is under way.
            MissingRecordError: an id names other bytes by now (crafted): ``put`` them one by one.
        """
        if self._committer.active is not None:
            raise UsageError("put_verbatim inside a transaction")
        return self._verbatim.make(file, chunks, known, mode)

    def chunk_table_of(self, txn: ReadTxn, pack: int) -> RecordId:
        """Return the id of a verbatim pack's chunk table; the pack may be pending.

        Raises:
            MissingRecordError: there is no such verbatim pack (any more).
        """
        return self._lookup.chunk_table_of(txn, pack)

    # --- reading -----------------------------------------------------------------------------

    def read(self, pieces: Sequence[Piece]) -> bytes:
        """Return the bytes of ``pieces``, one behind the other; holes are zeros. Any thread.

        Neighbours in one pack are read at once. The first time this process touches a chunk it
        reads all of it and compares it with its id.

        Raises:
            MissingRecordError: a chunk is not in the store.
            CorruptError: a chunk is damaged; names its pack, offset, expected and actual id.
        """
        return self.reader.read(pieces)

    def read_cached(
        self, pieces: Sequence[Piece], may_wait: Callable[[], bool] | None = None
    ) -> Buffer | None:
        """As ``read``, but return None at once when that would have to wait for the disk.

        A few short waits are spared a thread: those of a disk that was quick lately, when
        ``may_wait`` says that nobody else is held up. The bytes are there until this thread's next
        call: it uses the same memory again.
        """
        return self.reader.read_cached(pieces, may_wait)

    # --- the commit point --------------------------------------------------------------------

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Change the index durably: all of the body's changes and all pending records, or nothing.

        Packs are synced before LMDB's lock is taken, so that it is held shortly; other processes
        wait meanwhile. When the body or the commit raises, everything is rolled back and pending
        records stay pending (but for those that a rolled back body put first of all).

        Raises:
            MissingRecordError: a reference names a record that is not there (any more); put it,
                and what refers to it, again and retry.
            StoreFullError: the disk is full.
            UsageError: this thread is in a transaction already.
        """
        return self._committer.transaction()

    @property
    def pending_bytes(self) -> int:
        """What the next transaction will commit takes; O(its records)."""
        return self._pending.stored_bytes

    def totals(self) -> dict[str, int]:
        """Return what was done so far, by names that end in their unit."""
        return {
            "found_bytes": self._pending.found_bytes,
            "inserted_bytes": self._pending.inserted_bytes,
            "verified_chunks": self.reader.verified_chunks,
        }

    def reading(self) -> AbstractContextManager[ReadTxn]:
        """Return a context with one consistent, committed state of the index."""
        return self.db.reading()

    def sync(self) -> None:
        """Make pending records durable, though not yet committed; while no other thread puts."""
        self._committer.sync()

    def drop_tails(self) -> None:
        """Cut off what ended processes put and never committed: ``reindex`` would find it.

        Within a transaction this reaches whatever was put in one.
        """
        self.packs.drop_tails()

    def drop_pending(self) -> None:
        """Forget everything put since the last transaction, and give its bytes back at once."""
        self._committer.drop_pending()
