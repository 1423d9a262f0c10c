"""A view's journal as bytes: a header, then framed records of edits. Pure.

Edits state what is now true (an entry, an absence, a number), so applying one twice changes
nothing; a record's edits are applied together or not at all. Source: docs/format.md, "Journal".
"""

import struct
from collections.abc import Sequence

import msgspec
import xxhash

from dedupfs.errors import CorruptError, FormatVersionError, TornRecordError
from dedupfs.model import RecordId, TreeEntry

MAGIC = b"DFSJRNL1"
VERSION = 1
_FRAME = struct.Struct("<II")  # length of the body in bytes; low 32 bits of XXH3-64 over the body
FRAME_BYTES = _FRAME.size
BODY_BYTES_MAX = 64 << 20


class JournalHeader(msgspec.Struct, frozen=True, array_like=True):
    """First record of a journal: which root its edits apply to."""

    magic: bytes
    version: int
    view_id: int
    name: str
    generation: int
    root_id: RecordId
    next_number: int


class Place(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Inode number ``inode`` belongs to what is in ``slot`` of directory ``directory``."""

    inode: int
    directory: int
    slot: int


class Put(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Directory ``directory`` has this entry under its name. Data of the file stays as it is."""

    directory: int
    entry: TreeEntry


class Remove(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Directory ``directory`` has no entry ``name``.

    ``hide``: in a catalogue's root, the sequence number of the snapshot of that name that is
    hidden from now on; else 0.
    """

    directory: int
    name: bytes
    hide: int


class Attributes(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """A directory's own attributes are those of ``entry`` (but for its name and content)."""

    directory: int
    entry: TreeEntry


class Write(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Bytes of a small file, or that replace settled bytes: kept in the journal itself."""

    inode: int
    file_offset: int
    data: bytes


class Stage(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """From here on changed bytes of ``inode`` are in staging file ``staging``.

    Behind the end of the settled (and later the adopted) extents that file alone says what the
    bytes are, and how many; before it, the ``Write`` edits that follow do. ``times_told``: when
    they changed is in edits of attributes alone; else that file's own time counts when it is later.
    """

    inode: int
    staging: int
    times_told: bool = False


class Dirty(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """``[start, stop)`` of ``inode`` is in its staging file, durably so since before this edit."""

    inode: int
    start: int
    stop: int


class Truncate(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """``inode`` has ``size`` bytes; what is beyond is gone, what is new is zeros."""

    inode: int
    size: int


class Adopt(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """Bytes of ``inode`` from ``start`` on are these extents (packed), not its staging file's."""

    inode: int
    start: int
    extents: bytes


class Orphan(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """``inode`` has no name any more but is still open, or a directory that may be in use.

    Only a daemon that takes over from a dead one has use for it; ``entry``: what it is now, its
    content and size as settled; None: nobody is in that directory any more. Journals of earlier
    versions leave it out for files.
    """

    inode: int
    entry: TreeEntry | None = None


class Cut(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """The staging file of ``inode`` is about to be cut short to ``size`` bytes.

    Durable before that, unlike ``Truncate``, which says behind it that it was done: where no edit
    of the inode's bytes follows it may not have been, and replay does it.
    """

    inode: int
    size: int


NameEdit = Place | Put | Remove | Attributes | Orphan
Edit = NameEdit | Write | Stage | Dirty | Truncate | Adopt | Cut


class Edits(msgspec.Struct, frozen=True, array_like=True):
    """One record: what one request did, and when (for the times of directories and files)."""

    time_ns: int
    edits: tuple[Edit, ...]


_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(JournalHeader)
_edits_decoder = msgspec.msgpack.Decoder(Edits)


def _frame(body: bytes) -> bytes:
    assert len(body) <= BODY_BYTES_MAX, "a record that replay would take for damage"
    return _FRAME.pack(len(body), xxhash.xxh3_64_intdigest(body) & 0xFFFFFFFF) + body


def encode_header(header: JournalHeader) -> bytes:
    """Encode the first record of a journal."""
    return _frame(_encoder.encode(header))


def encode_edits(time_ns: int, edits: Sequence[Edit]) -> bytes:
    """Encode one record of edits, frame included."""
    return _frame(_encoder.encode((time_ns, edits)))


def _body(journal: bytes, journal_offset: int) -> bytes:
    if len(journal) - journal_offset < FRAME_BYTES:
        raise TornRecordError(f"the journal ends inside a frame at {journal_offset=}")
    length, check = _FRAME.unpack_from(journal, journal_offset)
    start = journal_offset + FRAME_BYTES
    if length > BODY_BYTES_MAX:
        raise CorruptError(f"a journal record of {length} bytes at {journal_offset=}")
    if len(journal) - start < length:
        raise TornRecordError(f"the journal ends inside a record at {journal_offset=}")
    body = journal[start : start + length]
    if xxhash.xxh3_64_intdigest(body) & 0xFFFFFFFF != check:
        raise CorruptError(f"bad checksum of the journal record at {journal_offset=}")
    return body


def decode_header(journal: bytes) -> tuple[JournalHeader, int]:
    """Decode the header and return it with the offset of the first record of edits.

    Raises:
        TornRecordError: the journal ends before its header does.
        CorruptError: it is no journal. FormatVersionError: a newer dedupfs wrote it.
    """
    body = _body(journal, 0)
    try:
        header = _header_decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise CorruptError(f"not a journal header: {exc}") from exc
    if header.magic != MAGIC:
        raise CorruptError("not a journal: bad magic")
    if header.version > VERSION:
        raise FormatVersionError(f"journal version {header.version}; this dedupfs reads {VERSION}")
    return header, FRAME_BYTES + len(body)


def decode_edits(journal: bytes, journal_offset: int) -> tuple[Edits, int]:
    """Decode the record at ``journal_offset`` and return it with the offset of the next one.

    Raises:
        TornRecordError: a crash cut the append short. CorruptError: the checksum is wrong.
        FormatVersionError: it is not, and yet these are no edits that this dedupfs knows.
    """
    body = _body(journal, journal_offset)
    try:
        edits = _edits_decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise FormatVersionError(
            f"a journal record at {journal_offset=} that a newer dedupfs wrote: {exc}"
        ) from exc
    return edits, journal_offset + FRAME_BYTES + len(body)
