"""Rows of the namespace's own index tables as bytes, and the rules for names.

Pure: no I/O, no store. Source: docs/format.md, "Index".
"""

import re
import struct

import msgspec

from dedupfs.errors import CorruptError, UsageError
from dedupfs.format.tree import decode_snapshot, encode_snapshot
from dedupfs.model import ID_BYTES, SNAPSHOT_NAME_BYTES_MAX, RecordId, SnapshotInfo

_NAME = re.compile(r"[A-Za-z0-9_@+=][A-Za-z0-9._@+=-]*")
_PLACE = struct.Struct(">IQI")
_HOME_KEY = struct.Struct(">IQ")
_INODE = struct.Struct("<Q")
_HOME = struct.Struct("<QI")
_OWNER = struct.Struct(">cI")
TOMBSTONE_OWNER = b"t"
"""Owner of the pins on tombstones: kept until gc has erased the records that they outdate."""


class ViewRow(msgspec.Struct, frozen=True, array_like=True):
    """A view in the index: where its root and its journal are.

    ``root_id`` is its VIEW_ROOT record (the row holds one reference to it); ``generation`` is that
    of the journal that starts from this root. ``held_bytes`` is what records take that this view
    alone holds: no less than that, as far as the view's own folds change it (see ``quota.py``);
    -1 when nobody has counted.
    """

    view_id: int
    name: str
    base: str
    generation: int
    root_id: RecordId
    created_ns: int
    held_bytes: int = -1


_view_decoder = msgspec.msgpack.Decoder(ViewRow)
_encode = msgspec.msgpack.Encoder().encode


def check_name(name: str, what: str = "snapshot") -> None:
    """Refuse what cannot be the name of a snapshot or a view.

    Raises:
        UsageError: not one component of 1-255 bytes of ``[A-Za-z0-9._@+=-]``, or a leading
            ``.`` or ``-``.
    """
    if len(name) > SNAPSHOT_NAME_BYTES_MAX or not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no {what} name: use 1 to 255 of the characters A-Z a-z 0-9 . _ @ + = -, "
            "not starting with . or -"
        )


def encode_snapshot_row(info: SnapshotInfo, record_id: RecordId) -> bytes:
    """Encode a SNAPSHOTS row: the record's id, then the payload of the record."""
    return record_id + encode_snapshot(info)


def decode_snapshot_row(row: bytes) -> tuple[SnapshotInfo, RecordId]:
    """Decode a SNAPSHOTS row.

    Raises:
        CorruptError: the row is no snapshot.
    """
    return decode_snapshot(row[ID_BYTES:]), RecordId(row[:ID_BYTES])


def encode_view_row(row: ViewRow) -> bytes:
    """Encode a VIEWS row."""
    return _encode(row)


def decode_view_row(data: bytes) -> ViewRow:
    """Decode a VIEWS row.

    Raises:
        CorruptError: the row is no view.
    """
    try:
        return _view_decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise CorruptError(f"not a view's row: {exc}; run 'dedupfs reindex'") from exc


def view_owner_key(view_id: int) -> bytes:
    """Return the owner of pins that a view holds."""
    return _OWNER.pack(b"v", view_id)


def place_key(view_id: int, directory: int, slot: int) -> bytes:
    """Key of PLACES: which inode number the object in a directory's slot has."""
    return _PLACE.pack(view_id, directory, slot)


def place_prefix(view_id: int, directory: int | None = None) -> bytes:
    """Prefix of all PLACES keys of a view, or of one directory of it."""
    if directory is None:
        return struct.pack(">I", view_id)
    return _HOME_KEY.pack(view_id, directory)


def slot_of_place_key(key: bytes) -> int:
    """Return the slot in a PLACES key."""
    slot: int = _PLACE.unpack(key)[2]
    return slot


def home_key(view_id: int, inode: int) -> bytes:
    """Key of HOMES: in which directory and slot an inode number is found."""
    return _HOME_KEY.pack(view_id, inode)


def encode_inode(inode: int) -> bytes:
    """Encode a PLACES value."""
    return _INODE.pack(inode)


def decode_inode(value: bytes) -> int:
    """Decode a PLACES value.

    Raises:
        CorruptError: it has another length.
    """
    if len(value) != _INODE.size:
        raise CorruptError(f"a place of {len(value)} bytes; run 'dedupfs check --repair'")
    inode: int = _INODE.unpack(value)[0]
    return inode


def encode_home(directory: int, slot: int) -> bytes:
    """Encode a HOMES value."""
    return _HOME.pack(directory, slot)


def decode_home(value: bytes) -> tuple[int, int]:
    """Decode a HOMES value into (directory number, slot).

    Raises:
        CorruptError: it has another length.
    """
    if len(value) != _HOME.size:
        raise CorruptError(f"a home of {len(value)} bytes; run 'dedupfs check --repair'")
    directory, slot = _HOME.unpack(value)
    return directory, slot
