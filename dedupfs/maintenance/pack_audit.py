"""Does what the index says of one pack agree with itself? Pure: knows no file.

Ranges are half open and include the record header (record packs have one in front of each record,
verbatim packs have none).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from dedupfs.format.keys import PackRow
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.maintenance.problems import Problems
from dedupfs.model import Location, PackKind, RecordId


@dataclass(frozen=True, slots=True)
class Span:
    """The range that one live record takes in its pack."""

    start: int
    stop: int
    record_id: RecordId


@dataclass(frozen=True, slots=True)
class FreeSpan:
    """A range that holds nothing any more."""

    start: int
    stop: int
    punched: bool


def span_of(record_id: RecordId, location: Location, kind: PackKind) -> Span:
    """Return the range that a record takes in a pack of ``kind``."""
    head = HEADER_BYTES if kind is PackKind.RECORDS else 0
    return Span(
        location.pack_offset - head, location.pack_offset + location.stored_bytes, record_id
    )


def overlapping(free: Sequence[FreeSpan], spans: Sequence[Span]) -> list[FreeSpan]:
    """Return the free ranges that share bytes with a record; both are in order of offset."""
    found = []
    stops = [span.stop for span in spans]
    for range_ in free:
        first = bisect_right(stops, range_.start)
        if first < len(spans) and spans[first].start < range_.stop:
            found.append(range_)
    return found


def audit_pack(
    pack: int, row: PackRow, spans: Sequence[Span], free: Sequence[FreeSpan], problems: Problems
) -> None:
    """Compare a pack's row with the records and free ranges in it, both in order of offset."""
    for span in spans:
        if span.start < 0 or span.stop > row.committed_bytes:
            problems.add(
                "location",
                f"pack {pack} at {span.start}",
                f"record {span.record_id.hex()} ends at {span.stop}, "
                f"beyond the {row.committed_bytes} committed bytes",
                record_id=span.record_id,
            )
    live_bytes = sum(span.stop - span.start for span in spans)
    if live_bytes != row.live_bytes:
        problems.add(
            "live-bytes",
            f"pack {pack}",
            f"its row counts {row.live_bytes} live bytes; its records make {live_bytes}",
        )
    for range_ in free:
        if range_.stop > row.committed_bytes:
            problems.add(
                "free-range",
                f"pack {pack} at {range_.start}",
                f"a free range ends at {range_.stop}, beyond the {row.committed_bytes} committed "
                "bytes",
            )
    _audit_overlaps(pack, spans, free, problems)


def _audit_overlaps(
    pack: int, spans: Sequence[Span], free: Sequence[FreeSpan], problems: Problems
) -> None:
    every = [(s.start, s.stop, s.record_id) for s in spans]
    every += [(f.start, f.stop, RecordId(b"")) for f in free]
    every.sort()
    reach, holder = 0, RecordId(b"")
    for start, stop, record_id in every:
        if start < reach:
            problems.add(
                "overlap",
                f"pack {pack} at {start}",
                f"{_name(record_id)} and {_name(holder)} share bytes",
                record_id=record_id or holder,
            )
        if stop > reach:
            reach, holder = stop, record_id


def _name(record_id: RecordId) -> str:
    return f"record {record_id.hex()}" if record_id else "a free range"
