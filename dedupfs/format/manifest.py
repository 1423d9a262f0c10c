"""A checkout's manifest: what a directory outside of the store shows, and what it needs for that.

Pure. Source: docs/format.md, "Checkouts".
"""

import struct

import msgspec
import xxhash

from dedupfs.errors import CorruptError, FormatVersionError
from dedupfs.model import TreeEntry

MAGIC = b"DFSCKOUT"
VERSION = 1
_HEAD = struct.Struct("<8sII")  # magic, version, low 32 bits of XXH3-64 of the body
HEAD_BYTES = _HEAD.size


class HeldPack(msgspec.Struct, frozen=True, array_like=True):
    """A verbatim pack that links of the checkout point at, as it was when they were made.

    ``mtime_ns`` is the file's: who writes through a link changes it.
    """

    pack: int
    file_bytes: int
    mtime_ns: int


class Shown(msgspec.Struct, frozen=True, array_like=True):
    """What a checkout shows.

    ``snapshot``, ``sequence`` and ``path`` say where it came from; the snapshot may be renamed or
    gone. ``root`` is the directory's entry: its content is the id of its tree, followed by that of
    the snapshot's links tree when it has hard links, as at the root of a scope.
    ``link``: how its files came to be (``symlink``, ``hardlink``, ``reflink``, ``copy``).
    """

    snapshot: str
    sequence: int
    path: bytes
    root: TreeEntry
    link: str


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """All that is kept of one checkout.

    ``kind`` tells who understands it: ``checkout``, or another command that needs packs whole.
    ``token``: random, also an attribute of the directory, so that a moved one is recognised.
    ``now``: what the directory shows; None before it shows anything whole. ``next``: what it is
    being made to show; None when nothing is under way. ``links``: content of a tree entry -> pack
    that is that file. ``detail``: of other kinds, opaque here.
    """

    number: int
    kind: str
    token: str
    directory: bytes
    created_ns: int
    now: Shown | None = None
    next: Shown | None = None
    packs: tuple[HeldPack, ...] = ()
    links: tuple[tuple[bytes, int], ...] = ()
    detail: bytes = b""


_decoder = msgspec.msgpack.Decoder(Manifest)
_encode = msgspec.msgpack.Encoder().encode


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest as a whole file."""
    body = _encode(manifest)
    return _HEAD.pack(MAGIC, VERSION, xxhash.xxh3_64_intdigest(body) & 0xFFFFFFFF) + body


def decode_manifest(data: bytes) -> Manifest:
    """Decode a manifest's file.

    Raises:
        CorruptError: it is none, or damaged. FormatVersionError: a newer dedupfs wrote it.
    """
    if len(data) < HEAD_BYTES:
        raise CorruptError(f"{len(data)} bytes are no manifest of a checkout")
    magic, version, check = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise CorruptError(f"no manifest of a checkout: {MAGIC!r} expected, {magic!r} found")
    if version > VERSION:
        raise FormatVersionError(f"manifest version {version}; this dedupfs reads {VERSION}")
    body = memoryview(data)[HEAD_BYTES:]
    if xxhash.xxh3_64_intdigest(body) & 0xFFFFFFFF != check:
        raise CorruptError("the manifest of a checkout is damaged")
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise CorruptError(f"not a manifest of a checkout: {exc}") from exc
