"""Collisions of XXH3-128 that are crafted, not waited for: the hash is not cryptographic.

Who knows the seed knows the secret of every stripe. A lane whose low half equals the secret's
multiplies to zero, so it only adds its value to its neighbour's sum; two such lanes of neighbouring
stripes may then trade their high halves freely. Source: xxhash's doc/xxhash_spec.md, "XXH3".
"""

from __future__ import annotations

import random
import struct

from dedupfs.format.pack import record_id
from dedupfs.model import RecordId, RecordKind
from dedupfs.store import Store

SECRET = bytes.fromhex("b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db")
"""The first bytes of XXH3's default secret."""
STRIPE_BYTES = 64
CHUNK_BYTES_MIN = 300
"""Shorter payloads are hashed in another way."""
_U64 = struct.Struct("<Q")


def crafted(chunk: bytes, seed: int, variant: int) -> bytes:
    """Return ``chunk`` with 16 bytes changed so that all variants of it have one hash.

    Not its first 8 bytes, which have a say in where the chunk before it ends.
    """
    (first,) = _U64.unpack_from(SECRET, 8)
    (second,) = _U64.unpack_from(SECRET, 16)
    low = [(first - seed) & 0xFFFFFFFF, (second + seed) & 0xFFFFFFFF]
    high = [variant, (1 << 32) - 1 - variant]
    changed = bytearray(chunk)
    for stripe in (0, 1):
        _U64.pack_into(changed, stripe * STRIPE_BYTES + 8, low[stripe] | high[stripe] << 32)
    return bytes(changed)


def colliding_file(store: Store, base_seed: int, length: int, variant: int) -> bytes:
    """Return a file; those that differ in ``variant`` alone have other bytes and equal chunk ids.

    The bytes that differ are the first of each chunk, which do not move its end.
    """
    seed = store.config.hash_seed ^ int(RecordKind.CHUNK) << 56
    data = random.Random(base_seed).randbytes(length)
    start = 0
    while length - start >= CHUNK_BYTES_MIN:
        window = crafted(data[start : start + store.config.chunk_bytes_max], seed, variant)
        data = data[:start] + window + data[start + len(window) :]
        start += store.chunker.cut(window, final=True)[0]
    return data


def chunk_ids(store: Store, data: bytes) -> list[RecordId]:
    """Return the ids that the chunks of ``data`` ask for first."""
    ids, start = [], 0
    for cut in store.chunker.cut(data, final=True):
        chunk = data[start : start + cut]
        ids.append(record_id(store.config.hash_seed, RecordKind.CHUNK, chunk, 0))
        start += cut
    return ids
