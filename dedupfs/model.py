"""Immutable values that the layers exchange: ids, locations, attributes, tree entries, settings.

Knows no I/O and no layout of bytes (that is ``format/``). Names are ``bytes``, never decoded;
times are nanoseconds since the epoch; sizes are bytes.
"""

import enum
import stat
from dataclasses import dataclass
from typing import Annotated, NewType

import msgspec

RecordId = NewType("RecordId", bytes)
"""16 bytes: the seeded XXH3-128 of a record's payload. A hint, never a proof (docs/format.md)."""

ID_BYTES = 16
HOLE = RecordId(bytes(ID_BYTES))
"""Stands in an extent for a run of zeros, which stores nothing."""

SNAPSHOT_NAME_BYTES_MAX = 255
NAME_BYTES_MAX = 255
FILE_BYTES_MAX = 1 << 46
"""A hole is an extent for each 4 GiB: so a file that is nothing else keeps to 16,384 of them."""
XATTRS_BYTES_MAX = 4 << 20
"""All names and values of one inode: they are repeated in its tree and with each change of it."""
XATTR_NAMES_BYTES_MAX = 1 << 16
"""All names with their ends: what listxattr(2) can return (XATTR_LIST_MAX)."""


ATIME_EPOCH_NS = -(1 << 63)
"""Stands for an atime of 0, which means "the same as mtime" in a tree entry."""


class RecordKind(enum.IntEnum):
    """What a record's payload is. Values are on disk: never renumber, only add."""

    CHUNK = 1
    CHUNK_TABLE = 2
    RECIPE = 3
    RECIPE_PAGE = 4
    TREE = 5
    TREE_PAGE = 6
    SNAPSHOT = 7
    VIEW_ROOT = 8
    FREE = 15
    PACK_TABLE = 16


class Codec(enum.IntEnum):
    """How a payload is stored. Values are on disk: never renumber, only add."""

    RAW = 0
    ZSTD = 1


class PackKind(enum.IntEnum):
    """Values are in the index: never renumber, only add."""

    RECORDS = 0
    VERBATIM = 1


@dataclass(frozen=True, slots=True)
class Location:
    """Where a record's payload lies.

    ``pack_offset`` is that of the stored payload itself (behind the record header in a record
    pack); ``stored_bytes`` counts the payload as stored, ``logical_bytes`` after decoding.
    """

    kind: RecordKind
    codec: Codec
    salt: int
    pack: int
    pack_offset: int
    stored_bytes: int
    logical_bytes: int


class Extent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One chunk (or HOLE) of a file, ``length`` bytes long; a file is a gapless list of them."""

    chunk_id: RecordId
    length: int


U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class TreeEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One name in a directory, with everything about the object it names.

    ``slot`` is unique in its directory and never reused there, so ``directory number << 24 |
    slot`` can be an inode number. ``mode`` holds the type bits; mode 0 is a whiteout (views'
    hidden trees only) and ``LINK_MODE`` says that ``content`` is a link id: the 8-byte name of an
    entry in the links tree of this scope.

    ``content``: a regular file's extents (packed, docs/format.md) or the 16 bytes of its recipe's
    id; a directory's tree id (16 bytes), followed by its links tree id (16 more) when the
    directory is the root of a scope; a symlink's target; nothing for other types.

    ``size``: bytes of a file or symlink; of a directory, the logical bytes below it, and
    ``count`` the entries below it. ``nlink`` of a directory is 2 plus its subdirectories.
    ``hole_bytes``: how many of a file's bytes are holes, which st_blocks does not count.
    ``ctime_ns``/``atime_ns`` of 0 mean the same as ``mtime_ns``; an atime of 0 is
    ``ATIME_EPOCH_NS``. ``has_links``: a directory below which hard-linked entries exist. Decoding
    refuses numbers that no inode can have.
    """

    name: bytes
    slot: U32
    mode: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
    uid: U32 = 0
    gid: U32 = 0
    mtime_ns: int = 0
    size: Count = 0
    content: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    nlink: U32 = 1
    rdev: Count = 0
    ctime_ns: int = 0
    atime_ns: int = 0
    count: Count = 0
    has_links: bool = False
    hole_bytes: int = 0

    @property
    def accessed_ns(self) -> int:
        """The atime, as stat(2) shows it."""
        return 0 if self.atime_ns == ATIME_EPOCH_NS else self.atime_ns or self.mtime_ns

    @property
    def kept_atime_ns(self) -> int:
        """``atime_ns`` with which the atime stays what it is when the mtime changes."""
        return self.atime_ns or self.mtime_ns or ATIME_EPOCH_NS

    @property
    def is_directory(self) -> bool:
        """Whether the entry is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether the entry is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether the entry is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether the entry names a hard-linked inode of its scope."""
        return self.mode == LINK_MODE

    @property
    def is_whiteout(self) -> bool:
        """Whether the entry hides a snapshot of that name."""
        return self.mode == 0


def is_file_name(name: bytes) -> bool:
    """Whether a file can be called ``name``; a crafted tree may hold anything."""
    possible = 0 < len(name) <= NAME_BYTES_MAX and name not in (b".", b"..")
    return possible and b"/" not in name and b"\0" not in name


def xattrs_fit(xattrs: tuple[tuple[bytes, bytes], ...]) -> bool:
    """Whether one inode can have all these extended attributes."""
    names_bytes = sum(len(name) + 1 for name, _ in xattrs)
    values_bytes = sum(len(value) for _, value in xattrs)
    return names_bytes <= XATTR_NAMES_BYTES_MAX and names_bytes + values_bytes <= XATTRS_BYTES_MAX


LINK_MODE = 0o160000
"""Type bits no POSIX object has: the entry is one name of a hard-linked inode."""


class TreePage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One page of a large directory: its entries have names >= ``first_name``."""

    first_name: bytes
    page_id: RecordId
    count: int


class Tree(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A directory's content, sorted by name: ``entries``, or ``pages`` when there are many.

    ``next_slot`` is above every slot ever used in this directory. ``slots_sorted``: slots rise
    in name order, as in every imported tree.
    """

    next_slot: int
    entries: tuple[TreeEntry, ...] = ()
    pages: tuple[TreePage, ...] = ()
    slots_sorted: bool = True


class SnapshotInfo(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot: an immutable named root. Also the payload of a SNAPSHOT record.

    ``sequence`` is unique in the store and never reused; ``revision`` rises when the name, tags or
    pin change (a new record of the same sequence); ``deleted`` marks a tombstone.
    ``root`` is a directory entry (its name is empty) whose content is the tree id and the links
    tree id (absent when nothing is hard-linked).
    """

    sequence: int
    name: str
    root: TreeEntry
    created_ns: int
    revision: int = 0
    tags: dict[str, str] = {}
    pinned: bool = False
    source: str = ""
    deleted: bool = False


class ViewRoot(msgspec.Struct, frozen=True, array_like=True):
    """The hidden snapshot under a view: payload of a VIEW_ROOT record.

    ``base`` is the name of the snapshot that the view was made from, "" for the catalogue.
    ``root`` as in SnapshotInfo; for a catalogue view its tree holds only what the view wrote and
    whiteouts. ``next_number`` is above every directory number ever given.
    """

    view_id: int
    name: str
    base: str
    generation: int
    root: TreeEntry
    next_number: int
    created_ns: int


class Attr(msgspec.Struct, frozen=True, gc=False):
    """What stat(2) answers for one inode; ``st_ino`` is ``inode``."""

    inode: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    stored_blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class StoreConfig(msgspec.Struct, frozen=True):
    """The content of dedupfs.json; never changed after ``init``."""

    format_version: int
    store_id: str
    hash_seed: int
    chunk_bytes_min: int = 16 * 1024
    chunk_bytes_average: int = 64 * 1024
    chunk_bytes_max: int = 256 * 1024
    compression: str = "auto"
    verbatim_bytes_min: int = 8 * 1024 * 1024
    pack_bytes_max: int = 512 * 1024 * 1024
    features: tuple[str, ...] = ()
