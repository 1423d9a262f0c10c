"""The part of check that reads packs: headers of all records, payloads of those that are no chunks.

Knows layout, not what payloads mean: those go to the function that it is given. Source:
docs/format.md, "Packs".
"""

from collections.abc import Callable, Sequence

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format.keys import PackRow, decode_location, decode_references, encode_pack_key
from dedupfs.format.pack import (
    HEADER_BYTES,
    PACK_HEADER_BYTES,
    decode_chunk_table,
    decode_pack_header,
)
from dedupfs.maintenance.census import Census, Member
from dedupfs.maintenance.pack_audit import Span, audit_pack
from dedupfs.maintenance.problems import LET_GO, REINDEX, RESTORE, Problems
from dedupfs.maintenance.recount import ReferenceCounter, Target
from dedupfs.maintenance.verify import check_header, check_payload, runs_of
from dedupfs.model import PackKind, RecordId, RecordKind
from dedupfs.store import ReadTxn, Store, Table
from dedupfs.store.disk import File
from dedupfs.store.inventory import payload_of
from dedupfs.store.scan import PackScanner

_GAP_BYTES_MAX = 4096

Take = Callable[[RecordId, RecordKind, bytes], None]


class Changed(Exception):
    """A record or pack of our state of the index has been given back meanwhile."""


class Pass:
    """What all parts of one attempt share."""

    def __init__(self, store: Store, txn: ReadTxn) -> None:
        self.store = store
        self.txn = txn
        self.problems = Problems()
        self.counter = ReferenceCounter()
        self.unread = 0
        """Metadata records that could not be read: what they refer to is not counted."""
        self.dead_rows = 0

    def payload(self, record_id: RecordId, kind: RecordKind) -> bytes | None:
        """Return a record's payload; None when it is missing or damaged, which others report."""
        row = self.txn.get(Table.RECORDS, record_id)
        if row is None or row[0] != kind:
            return None
        try:
            return bytes(payload_of(self.store, record_id, decode_location(row)[0]))
        except StoreError:
            self.require_unchanged(record_id, row)
            return None

    def require_unchanged(self, record_id: RecordId, row: bytes) -> None:
        """Begin again unless the record still lies where our state of the index says."""
        now = self.store.db.record_row(record_id)
        if now is None or decode_location(now)[0] != decode_location(row)[0]:
            raise Changed

    def references_in(self, row: bytes) -> int:
        """Return the reference count of a row; 1 for a row that is none (reported elsewhere)."""
        try:
            return decode_references(row)
        except CorruptError:
            return 1

    def compare(self, record_id: RecordId, row: bytes, target: Target | None) -> None:
        """Compare a row of RECORDS with what refers to it."""
        try:
            location, references = decode_location(row)
        except CorruptError:
            return  # reported by the census
        counted = target.count if target is not None else 0
        where = f"{location.kind.name.lower()} {record_id.hex()}"
        # What an unreadable record refers to cannot be counted, so too few are no news then.
        if counted > references or (counted < references and not self.unread):
            what = f"its row says {references} references; {counted} were counted"
            self.problems.add("references", where, what, REINDEX, record_id)
        if target is not None and target.kind not in (0, location.kind):
            wanted = RecordKind(target.kind).name.lower()
            self.problems.add("kind", where, f"it is used as a {wanted}", RESTORE, record_id)
        elif target is not None and target.contradictory:
            self.problems.add("kind", where, "its users disagree what it is", RESTORE, record_id)
        elif target is not None and target.length not in (0, location.logical_bytes):
            what = f"it has {location.logical_bytes} bytes; files use it with {target.length}"
            self.problems.add("length", where, what, RESTORE, record_id)
        if references == 0:
            self.dead_rows += 1
            if self.txn.get(Table.DEAD, record_id) is None:
                what = "it has no references and is not listed as dead, so gc never frees it"
                self.problems.add("dead", where, what, REINDEX, record_id)


class PackCheck:
    """Checks packs one by one; ``take`` gets every metadata record that can be read."""

    def __init__(self, shared: Pass, census: Census, take: Take) -> None:
        self._pass = shared
        self._census = census
        self._take = take
        self.chunks = 0
        self.lost_bytes = 0

    def run(self, pack: int) -> int:
        """Check one pack; return how many records it has."""
        members = self._census.members(self._pass.txn, pack)
        row = self._census.packs.get(pack)
        if row is None:
            self._pass.problems.add(
                "pack", f"pack {pack}", f"{len(members)} records and no row in the index"
            )
            row = PackRow(PackKind.RECORDS, False, 1 << 62, 0)
        else:
            free = self._census.free.get(pack, [])
            audit_pack(pack, row, [member.span for member in members], free, self._pass.problems)
        file = self._open(pack, row)
        if file is None:
            self._pass.unread += sum(m.location.kind is not RecordKind.CHUNK for m in members)
            return len(members)
        try:
            self._check_file(pack, row, file)
            if row.kind is PackKind.RECORDS:
                self._add_lost_bytes(pack, row, file)
                self._check_records(file, members)
            else:
                self._check_chunk_table(pack, row, members)
                self.chunks += len(members)
        finally:
            file.close()
        return len(members)

    def _open(self, pack: int, row: PackRow) -> File | None:
        path = self._pass.store.layout.pack(pack, row.kind)
        try:
            return self._pass.store.disk.open(path)
        except FileNotFoundError:
            with self._pass.store.reading() as now:
                has_row = now.get(Table.PACKS, encode_pack_key(pack)) is not None
            if pack in self._census.packs and not has_row:
                raise Changed from None
        if row.committed_bytes > PACK_HEADER_BYTES or row.live_bytes:
            self._pass.problems.add(
                "pack", f"pack {pack}", f"there is no {path}", "put it back or restore its files"
            )
        return None

    def _check_file(self, pack: int, row: PackRow, file: File) -> None:
        size = self._pass.store.disk.size(file)
        too_long = row.sealed and size != row.committed_bytes
        if (size < row.committed_bytes < 1 << 62) or too_long:
            self._pass.problems.add(
                "pack",
                str(file.path),
                f"the file has {size} bytes; the index says {row.committed_bytes}",
                f"{REINDEX}; what was cut off must be restored",
            )
        if row.kind is PackKind.RECORDS and size >= PACK_HEADER_BYTES:
            head = self._pass.store.disk.pread(file, PACK_HEADER_BYTES, 0)
            try:
                decode_pack_header(head, pack, self._pass.store.config.hash_seed)
            except StoreError as exc:
                self._pass.problems.add("pack", str(file.path), str(exc), RESTORE)

    def _add_lost_bytes(self, pack: int, row: PackRow, file: File) -> None:
        """Add what is neither live nor free: gc cannot give it back before the pack is empty."""
        stop = row.committed_bytes
        if row.sealed:
            scanner = PackScanner(
                self._pass.store.disk, file, pack, self._pass.store.config.hash_seed
            )
            table_offset = scanner.read_trailer()
            if table_offset is None:
                what = "its trailer is damaged, so that a scan that meets damage is slow"
                self._pass.problems.add("pack", str(file.path), what, "nothing is lost by it")
                return
            stop = table_offset
        free = sum(span.stop - span.start for span in self._census.free.get(pack, []))
        known = PACK_HEADER_BYTES + row.live_bytes + free
        if pack in self._census.packs:
            self.lost_bytes += max(0, stop - known)

    # --- records ------------------------------------------------------------------------------

    def _check_records(self, file: File, members: Sequence[Member]) -> None:
        self.chunks += sum(member.location.kind is RecordKind.CHUNK for member in members)
        needs = [_needed(member) for member in members]
        for run in runs_of(needs, gap_bytes_max=_GAP_BYTES_MAX):
            part = members[run.first : run.last]
            try:
                data = self._pass.store.disk.pread(file, run.stop - run.start, run.start)
            except StoreError as exc:  # a bad sector, or a row that says something impossible
                for member in part:
                    self._add_damaged(file, member, exc)
                continue
            for member in part:
                self._check_record(file, member, memoryview(data), run.start)

    def _check_record(self, file: File, member: Member, data: memoryview, data_start: int) -> None:
        location, record_id = member.location, member.span.record_id
        config = self._pass.store.config
        is_chunk = location.kind is RecordKind.CHUNK
        offset = member.span.start - data_start
        try:
            check_header(config, record_id, location, data, offset)
            if not is_chunk:
                stored = data[offset + HEADER_BYTES : member.span.stop - data_start]
                payload = check_payload(config, record_id, location, stored)
                self._take(record_id, location.kind, bytes(payload))
        except CorruptError as exc:
            self._add_damaged(file, member, exc)

    def _add_damaged(self, file: File, member: Member, exc: StoreError) -> None:
        record_id, kind = member.span.record_id, member.location.kind
        row = self._pass.txn.get(Table.RECORDS, record_id)
        assert row is not None, "the member was made from this row"
        self._pass.require_unchanged(record_id, row)
        self._pass.unread += kind is not RecordKind.CHUNK
        where = f"{file.path} at {member.span.start}"
        what = f"{kind.name.lower()} {record_id.hex()}: {exc}"
        if self._pass.references_in(row):
            self._pass.problems.add("record", where, what, RESTORE, record_id)
        else:  # gc keeps what it cannot read: nobody knows what that refers to
            what += "; nothing needs it any more"
            self._pass.problems.add("garbage", where, what, LET_GO, record_id)

    def _check_chunk_table(self, pack: int, row: PackRow, members: Sequence[Member]) -> None:
        payload = None
        if row.chunk_table is not None:
            payload = self._pass.payload(row.chunk_table, RecordKind.CHUNK_TABLE)
        listed = set()
        if payload is not None:
            table = decode_chunk_table(payload)
            if table.pack == pack:
                listed = {(c.file_offset, c.length, c.salt, c.chunk_id) for c in table.chunks}
        for member in members:
            location, record_id = member.location, member.span.record_id
            named = (location.pack_offset, location.stored_bytes, location.salt, record_id)
            if named not in listed:
                self._pass.problems.add(
                    "chunk-table",
                    f"pack {pack} at {location.pack_offset}",
                    f"chunk {record_id.hex()} is not in the pack's chunk table, so that reindex "
                    "would not find it",
                    RESTORE,
                    record_id,
                )


def _needed(member: Member) -> Span:
    """Return the bytes that check reads of a record: of a chunk, its header alone."""
    span = member.span
    if member.location.kind is RecordKind.CHUNK:
        return Span(span.start, span.start + HEADER_BYTES, span.record_id)
    return span
