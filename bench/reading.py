"""One large file: how fast is reading, and what does a change of 4 KiB cost?

The change must leave the original as it is. Natively, and on XFS and btrfs, that takes a copy
first, which is part of the time; so does a copy-up, which overlayfs does by itself.
"""

from __future__ import annotations

import os
import random
import time
from functools import partial
from pathlib import Path

from bench.commands import disk_bytes, remove, run
from bench.datasets import noise_file
from bench.harness import Harness, seconds_of
from bench.sessions import Step, Visit, cold, sessions, warm

FILE_BYTES = 512 << 20
CHANGED_FILE_BYTES = 384 << 20
CHANGED_BYTES = 4096
READ_BYTES = 1 << 20
RANDOM_BYTES = 4096
RANDOM_SECONDS = {"random-cold": 2.0, "random-warm": 1.0}
"""A mount that is slow at it need not read all."""
RANDOM_COUNT = {"random-cold": 8_000, "random-warm": 400_000}
SESSIONS_SECONDS = 85


def measure(harness: Harness) -> None:
    with harness.borrowed("large") as source:
        size = harness.scale.bytes(FILE_BYTES)
        changed = harness.scale.bytes(CHANGED_FILE_BYTES)
        noise_file(source / "model.bin", size)
        noise_file(source / "changed.bin", changed, "changed")
        grown: dict[tuple[str, int], float] = {}
        random_cold, random_warm = (partial(_random, key) for key in RANDOM_SECONDS)
        steps = [
            Step("read-cold", cold(_sequential)),
            Step("read-warm", warm(_sequential)),
            Step("random-cold", cold(random_cold)),
            Step("random-warm", partial(_after_reading, random_warm)),
            Step("overwrite", partial(_overwrite, grown), writes=True),
            Step("overwrite-disk", lambda v: grown[v.peer.name, v.number], writes=True),
        ]
        whole, part = f"{size >> 20} MiB", f"4 KiB in {changed >> 20} MiB, isolated"
        notes = {
            "read-cold": whole,
            "read-warm": whole,
            "random-cold": f"one thread, in {whole}",
            "random-warm": f"one thread, in {whole}",
            "overwrite": f"{part}; native, XFS and btrfs: copy, then write; bindfs: in place",
            "overwrite-disk": f"{part}, until the fsync returns",
        }
        sessions(harness, source, steps, seconds=SESSIONS_SECONDS, notes=notes)


def _sequential(visit: Visit) -> float:
    """Return MB/s."""
    path = visit.top / "model.bin"
    return path.stat().st_size / seconds_of(lambda: _read(path)) / 1e6


def _read(path: Path) -> None:
    buffer = memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _after_reading(work: partial[float], visit: Visit) -> float:
    _read(visit.top / "model.bin")
    return work(visit)


def _random(key: str, visit: Visit) -> float:
    """Return reads per second, at offsets that are the same for all and in each round."""
    path = visit.top / "model.bin"
    blocks = path.stat().st_size // RANDOM_BYTES
    chance = random.Random(key)
    offsets = [chance.randrange(blocks) * RANDOM_BYTES for _ in range(RANDOM_COUNT[key])]
    buffers = [bytearray(RANDOM_BYTES)]
    fd = os.open(path, os.O_RDONLY)
    try:
        started = time.perf_counter()
        deadline = started + RANDOM_SECONDS[key]
        done = 0
        for done, offset in enumerate(offsets, start=1):
            os.preadv(fd, buffers, offset)
            if done % 64 == 0 and time.perf_counter() > deadline:
                break
        return done / (time.perf_counter() - started)
    finally:
        os.close(fd)


_COPIES = {
    "native": ("cp", "--reflink=never"),
    "XFS reflink": ("cp", "--reflink=always"),
    "btrfs": ("cp", "--reflink=always"),
}


def _overwrite(grown: dict[tuple[str, int], float], visit: Visit) -> float:
    """Return milliseconds, and note what the disk grew by."""
    path = visit.top / "changed.bin"
    copy = _COPIES.get(visit.peer.name)
    target = visit.top / "copy.bin" if copy else path
    size = path.stat().st_size
    os.sync()
    before = _taken(visit, target)
    started = time.perf_counter()
    if copy:
        run(*copy, path, target)
    fd = os.open(target, os.O_RDWR)
    try:
        os.pwrite(fd, b"%4096d" % visit.number, size // 2 // CHANGED_BYTES * CHANGED_BYTES)
        os.fsync(fd)
        elapsed = time.perf_counter() - started
    finally:
        os.close(fd)
    grown[visit.peer.name, visit.number] = max(0, _taken(visit, target) - before)
    if copy:
        remove(target)
    return elapsed * 1000


def _taken(visit: Visit, target: Path) -> int:
    if visit.peer.name == "native":
        return disk_bytes(target.parent)
    return visit.peer.disk_bytes()
