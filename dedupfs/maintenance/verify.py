"""One record as it lies in a pack: read it, compare its header with its row, its bytes with its id.

Remembers nothing: what was verified before is read and verified again. Knows packs, no index.
Thread-safe.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dedupfs.errors import CorruptError, FormatVersionError, TornRecordError
from dedupfs.format.pack import (
    HEADER_BYTES,
    FreeHeader,
    check_seed,
    decode_header,
    record_id,
)
from dedupfs.maintenance.pack_audit import Span
from dedupfs.model import Location, PackKind, RecordId, StoreConfig
from dedupfs.store import codec as codecs
from dedupfs.store.disk import Buffer, Disk, File

RUN_BYTES_MAX = 4 << 20
GAP_BYTES_MAX = 64 << 10
"""Two records this close are read at once: cheaper than two system calls."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring records of one pack that one read serves; indexes are half open."""

    first: int
    last: int
    start: int
    stop: int


def runs_of(spans: Sequence[Span], *, gap_bytes_max: int = GAP_BYTES_MAX) -> Iterator[Run]:
    """Group spans, which are in order of offset, into runs."""
    first = 0
    while first < len(spans):
        start, stop = spans[first].start, spans[first].stop
        last = first + 1
        while last < len(spans):
            span = spans[last]
            if span.start > stop + gap_bytes_max or span.stop - start > RUN_BYTES_MAX:
                break
            stop = max(stop, span.stop)
            last += 1
        yield Run(first, last, start, stop)
        first = last


def read_run(disk: Disk, file: File, start: int, stop: int, *, from_disk: bool) -> memoryview:
    """Read ``[start, stop)`` of a pack; ``from_disk``: not out of the page cache, nor into it."""
    if from_disk:
        os.posix_fadvise(file.fd, start, stop - start, os.POSIX_FADV_DONTNEED)
    data = disk.pread(file, stop - start, start)
    if from_disk:
        os.posix_fadvise(file.fd, start, stop - start, os.POSIX_FADV_DONTNEED)
    return memoryview(data)


def check_header(
    config: StoreConfig, record: RecordId, location: Location, buffer: Buffer, offset: int
) -> None:
    """Compare the record header at ``offset`` of ``buffer`` with the record's row.

    Raises:
        CorruptError: the header is damaged, or belongs to another record.
    """
    start = location.pack_offset - HEADER_BYTES
    try:
        header = decode_header(buffer, offset, check_seed(config.hash_seed, location.pack, start))
    except (TornRecordError, FormatVersionError) as exc:
        raise CorruptError(str(exc)) from exc
    if isinstance(header, FreeHeader):
        raise CorruptError("its header says that it was freed")
    expected = (
        location.kind,
        location.codec,
        location.salt,
        location.stored_bytes,
        location.logical_bytes,
        record,
    )
    actual = (
        header.kind,
        header.codec,
        header.salt,
        header.stored_bytes,
        header.logical_bytes,
        header.record_id,
    )
    if actual != expected:
        raise CorruptError(f"its header is that of record {header.record_id.hex()}")


def check_payload(
    config: StoreConfig, record: RecordId, location: Location, stored: Buffer
) -> Buffer:
    """Return the payload that ``stored`` holds, compared with the record's id.

    Raises:
        CorruptError: with the expected and the actual digest, or why it cannot be decoded.
    """
    if len(stored) < location.stored_bytes:
        raise CorruptError(
            f"the pack ends {location.stored_bytes - len(stored)} bytes before the record does"
        )
    payload = codecs.decode(location.codec, stored, location.logical_bytes)
    actual = record_id(config.hash_seed, location.kind, payload, location.salt)
    if actual != record:
        raise CorruptError(f"expected digest {record.hex()}, actual {actual.hex()}")
    return payload


def check_record(
    config: StoreConfig,
    record: RecordId,
    location: Location,
    kind: PackKind,
    data: memoryview,
    data_start: int,
) -> Buffer:
    """Verify the record within ``data``, which starts at ``data_start`` of its pack.

    Raises:
        CorruptError: what is wrong, without the place (the caller knows it).
    """
    body = location.pack_offset - data_start
    if kind is PackKind.RECORDS:
        check_header(config, record, location, data, body - HEADER_BYTES)
    return check_payload(config, record, location, data[body : body + location.stored_bytes])
