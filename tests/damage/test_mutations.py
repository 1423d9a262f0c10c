"""Thousands of mutated encodings: every decoder gives a value or a StoreError, in little memory.

Method: sound encodings of every kind are flipped, cut, spliced, repeated and given extreme numbers
in a seeded loop; every decoder gets each of them. Bombs are made on purpose.
"""

from __future__ import annotations

import os
import random
import resource
import struct
from collections.abc import Callable

import pytest
import zstandard

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format import journal
from dedupfs.model import Codec, RecordId, TreeEntry
from dedupfs.namespace.rows import (
    ViewRow,
    decode_home,
    decode_inode,
    decode_snapshot_row,
    decode_view_row,
    encode_view_row,
)
from dedupfs.store.codec import Encoder, decode
from tests.conftest import Scale
from tests.format.test_hostile_bytes import DECODERS, REAL

SOME_ID = RecordId(bytes(range(16)))
ENTRY = TreeEntry(b"name", 3, 0o100644)
HEADER = journal.JournalHeader(journal.MAGIC, 1, 1, "view", 2, SOME_ID, 9)
EDITS: list[journal.Edit] = [
    journal.Place(1 << 24, 1, 1),
    journal.Put(1, ENTRY),
    journal.Remove(1, b"name", 0),
    journal.Attributes(1, ENTRY),
    journal.Write(5, 0, b"data"),
    journal.Stage(5, 1),
    journal.Dirty(5, 0, 4),
    journal.Truncate(5, 2),
    journal.Adopt(5, 0, bytes(20)),
    journal.Orphan(5),
]
SAMPLES = [
    *REAL,
    journal.encode_header(HEADER),
    journal.encode_edits(7, EDITS),
    encode_view_row(ViewRow(1, "view", "", 2, SOME_ID, 3)),
]
ALL: dict[str, Callable[[bytes], object]] = {
    **DECODERS,
    "journal header": journal.decode_header,
    "journal edits": lambda data: journal.decode_edits(data, 0),
    "body of edits": lambda data: journal.decode_edits(journal._frame(data), 0),
    "body of a header": lambda data: journal.decode_header(journal._frame(data)),
    "snapshot row": decode_snapshot_row,
    "view row": decode_view_row,
    "place": decode_inode,
    "home": decode_home,
}
EXTREMES = [struct.pack(f, n) for f in ("<I", ">I") for n in (0, 1, 1 << 31, (1 << 32) - 1)]
EXTREMES += [struct.pack("<Q", n) for n in (1 << 63, (1 << 64) - 1, 1 << 40)]
EXTREMES += [b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 40, b"\xc1"]


def mutated(chance: random.Random) -> bytes:
    data = bytearray(chance.choice(SAMPLES))
    for _ in range(chance.choice([1, 1, 2, 5])):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0 if place < len(data):
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                del data[place:]
            case 2:
                data[place:place] = chance.choice(SAMPLES)[: chance.randrange(1, 60)]
            case 3:
                extreme = chance.choice(EXTREMES)
                data[place : place + len(extreme)] = extreme
            case 4:
                data += data[place:]
            case _:
                data[place : place + 1] = chance.randbytes(chance.randrange(4))
    return bytes(data)


def test_mutated_encodings_give_a_value_or_a_store_error(scale: Scale) -> None:
    seed = 0 if os.environ.get("CI") == "true" else random.SystemRandom().randrange(1 << 32)
    print(f"seed={seed}")  # noqa: T201 - how to see it again
    chance = random.Random(seed)
    for _ in range(scale(1500, 100_000)):
        data = mutated(chance)
        for name, decoder in ALL.items():
            try:
                decoder(data)
            except StoreError:
                pass
            except Exception as exc:
                raise AssertionError(f"{name} of {data.hex()}") from exc


def zeros_compressed(size: int) -> bytes:
    """Return an honest frame of ``size`` zeros, which is 30,000 times smaller."""
    return zstandard.ZstdCompressor(level=3).compress(bytes(size))


@pytest.mark.parametrize("claimed", [1 << 25, (1 << 32) - 1])
@pytest.mark.parametrize("honest", [True, False])
def test_a_bomb_takes_no_memory(claimed: int, honest: bool) -> None:
    """A few stored bytes must not decide about gigabytes, even when the frame keeps its word."""
    if honest and claimed > 1 << 25:
        pytest.skip("making it would take the memory that reading it must not take")
    frame = zeros_compressed(claimed) if honest else header_that_claims(claimed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptError):
        decode(Codec.ZSTD, frame, claimed)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10


def header_that_claims(size: int) -> bytes:
    """Return a frame of few bytes whose header says that it has ``size``."""
    frame = bytearray(zstandard.ZstdCompressor(level=3).compress(bytes(70_000)))
    assert frame[4] >> 6 == 2  # four bytes tell the size
    frame[5:9] = struct.pack("<I", size)
    return bytes(frame)


def test_a_large_payload_of_zeros_can_be_read_again() -> None:
    payload = bytes((1 << 24) + 1)
    codec, stored = Encoder("zstd").encode(payload)
    assert codec is Codec.RAW
    assert decode(codec, stored, len(payload)) == payload
