"""How fast is writing of new data, in large and small pieces, and of data that the store has?

Each file is written in order, then fsynced; both are timed. The data are made before.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from bench.datasets import MIB, new_pieces, noise_file
from bench.harness import Harness
from bench.peers import Bindfs, Btrfs, Dedupfs, FuseOverlay, Native, Overlay, S3ql, Xfs
from bench.sessions import Step, Visit, sessions

LARGE_BYTES = 1 << 30
SMALL_BYTES = 256 << 20
"""In 4 KiB pieces: as much as a slow file system writes in some seconds."""
SMALL_PIECE_BYTES = 4096
SESSIONS_SECONDS = 100
KINDS = (Native, Dedupfs, Overlay, FuseOverlay, Bindfs, Xfs, Btrfs, S3ql)


class _Pieces:
    """The new data of a round: the same for all peers, made once a round."""

    def __init__(self) -> None:
        self._key = ""
        self._data: list[memoryview] = []

    def get(self, key: str, byte_count: int) -> list[memoryview]:
        if self._key != key:
            self._data = []  # not two of them in memory
            self._data = new_pieces(key, byte_count)
            self._key = key
        return self._data


def measure(harness: Harness) -> None:
    large, small = harness.scale.bytes(LARGE_BYTES), harness.scale.bytes(SMALL_BYTES)
    harness.require_room(12 * large)  # each peer keeps what it was made ready with
    data = _Pieces()
    with harness.borrowed("known") as source:
        noise_file(source / "known.bin", large, "known")
        known = new_pieces("known", large)
        steps = [
            Step("write-1m", partial(_write_new, data, large, MIB), writes=True),
            Step("write-4k", partial(_write_new, data, small, SMALL_PIECE_BYTES), writes=True),
            Step("write-known", lambda v: _write(v.top / "again", known, MIB), writes=True),
        ]
        notes = {
            "write-1m": f"{large >> 20} MiB",
            "write-4k": f"{small >> 20} MiB",
            "write-known": f"{large >> 20} MiB, in 1 MiB pieces",
        }
        sessions(harness, source, steps, seconds=SESSIONS_SECONDS, notes=notes, kinds=KINDS)


def _write_new(data: _Pieces, byte_count: int, piece_bytes: int, visit: Visit) -> float:
    pieces = data.get(f"new {visit.number} {piece_bytes}", byte_count)
    return _write(visit.top / f"new-{piece_bytes}", pieces, piece_bytes)


def _write(path: Path, pieces: list[memoryview], piece_bytes: int) -> float:
    """Return MB/s. The file is gone afterwards, and what it left to be written back, too."""
    total = sum(map(len, pieces))
    if piece_bytes < MIB:
        starts = range(0, MIB, piece_bytes)
        pieces = [piece[at : at + piece_bytes] for piece in pieces for at in starts if piece[at:]]
    os.sync()
    started = time.perf_counter()
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        for piece in pieces:
            os.write(fd, piece)
        os.fsync(fd)
    finally:
        os.close(fd)
    elapsed = time.perf_counter() - started
    path.unlink()
    return total / elapsed / 1e6
