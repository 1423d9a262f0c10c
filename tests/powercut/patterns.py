"""Bytes that name who wrote them: foreign, stale and misplaced bytes are recognised at once.

Every 512 bytes of a pattern open with its seed (the write's own number) and the offset in the file;
the rest is noise of that seed. Seed 0 is zeros.
"""

from __future__ import annotations

import random
import struct
from functools import lru_cache

CELL_BYTES = 512
_NOISE_BYTES = 8 * CELL_BYTES
_HEAD = struct.Struct(">4sQI")
_MAGIC = b"PwCt"


@lru_cache(maxsize=256)
def _noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(_NOISE_BYTES)


@lru_cache(maxsize=128)
def pattern(seed: int, start: int, stop: int) -> bytes:
    """Return bytes ``[start, stop)`` of the endless file that a seed stands for."""
    if seed == 0:
        return bytes(stop - start)
    first = start // _NOISE_BYTES * _NOISE_BYTES
    data = bytearray(_noise(seed) * (-(-(stop - first) // _NOISE_BYTES)))
    for offset in range(0, len(data), CELL_BYTES):
        _HEAD.pack_into(data, offset, _MAGIC, seed, (first + offset) // CELL_BYTES)
    return bytes(data[start - first : stop - first])


def describe(data: bytes, file_offset: int) -> str:
    """Say whose bytes these are, as far as they tell."""
    if not any(data):
        return "zeros"
    for offset in range(-file_offset % CELL_BYTES, len(data) - _HEAD.size + 1, CELL_BYTES):
        magic, seed, cell = _HEAD.unpack_from(data, offset)
        if magic == _MAGIC:
            return f"write {seed} of offset {cell * CELL_BYTES} at {file_offset + offset}"
    return f"unknown bytes {data[:16].hex()}..."
