"""Payload <-> stored bytes: raw, or zstd where it pays. zstandard is imported only here.

Knows no pack. Source: docs/format.md, "Codecs".
"""

import threading

import zstandard

from dedupfs.errors import CorruptError, UsageError
from dedupfs.model import Codec

Buffer = bytes | bytearray | memoryview

COMPRESSIONS = ("auto", "none", "zstd")
_LEVEL = 3
_SAMPLE_BYTES = 4096
_SAMPLE_FROM_BYTES = 16 << 10
"""Shorter ones are all tried: in vain that is 2 us more than the sample is, else 15 us less."""
_TRY_BYTES_MIN = 64  # shorter than this, a zstd frame cannot win
_LEVEL_FAST = 1  # 3 us for the sample; the same answer as level 3
_FREE_BYTES = 1 << 24
"""So much memory, a chunk's, a few stored bytes may claim; more must have more behind it."""
_RATIO_MAX = 256


class Encoder:
    """Chooses codecs; for one thread at a time."""

    def __init__(self, compression: str) -> None:
        if compression not in COMPRESSIONS:
            raise UsageError(f"compression is one of {', '.join(COMPRESSIONS)}, not {compression}")
        self._try = compression != "none"
        self._sample = compression == "auto"
        self._compress = zstandard.ZstdCompressor(level=_LEVEL).compress
        self._compress_fast = zstandard.ZstdCompressor(level=_LEVEL_FAST).compress

    def encode(self, payload: Buffer) -> tuple[Codec, Buffer]:
        """Return the codec and the stored bytes; the payload itself when zstd does not pay.

        "auto" compresses only what shrinks below 3/4 in a sample (text and code do, float tensors
        do not), and keeps the result only below 15/16.
        """
        size = len(payload)
        if not self._try or size < _TRY_BYTES_MIN:
            return Codec.RAW, payload
        if self._sample and size > _SAMPLE_FROM_BYTES:
            sample = payload[:_SAMPLE_BYTES]
            if len(self._compress_fast(sample)) * 4 >= _SAMPLE_BYTES * 3:
                return Codec.RAW, payload
        stored = self._compress(payload)
        if len(stored) * 16 >= size * 15 or _is_bomb(len(stored), size):
            return Codec.RAW, payload
        return Codec.ZSTD, stored


def _is_bomb(stored_bytes: int, logical_bytes: int) -> bool:
    """Whether so few bytes would take so much memory that no record of ours is made like that."""
    return logical_bytes > max(_FREE_BYTES, stored_bytes * _RATIO_MAX)


class _Decompressor(threading.local):
    """One zstd context per thread, since a context serves one call at a time."""

    def __init__(self) -> None:
        self.decompress = zstandard.ZstdDecompressor().decompress


_local = _Decompressor()


def decode(codec: Codec | int, stored: Buffer, logical_bytes: int) -> Buffer:
    """Return the payload of ``logical_bytes`` that ``stored`` holds; raw bytes as they are.

    Raises:
        CorruptError: not a zstd frame, or one of another length.
    """
    if codec == Codec.RAW:
        if len(stored) != logical_bytes:
            raise CorruptError(f"{len(stored)} raw bytes stored of {logical_bytes}")
        return stored
    if _is_bomb(len(stored), logical_bytes):
        raise CorruptError(f"{len(stored)} bytes stored claim to be {logical_bytes}")
    try:
        # The frame's own claim is checked first: it decides how much memory is taken.
        if zstandard.frame_content_size(stored) != logical_bytes:
            raise CorruptError(f"not a zstd frame of {logical_bytes} bytes")
        payload = _local.decompress(stored)
    except (zstandard.ZstdError, MemoryError) as exc:
        raise CorruptError(f"zstd cannot decode {len(stored)} bytes: {exc}") from exc
    if len(payload) != logical_bytes:
        raise CorruptError(f"zstd made {len(payload)} bytes of {logical_bytes}")
    return payload
