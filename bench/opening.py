"""Does a mount of a large store answer as soon as that of an empty one, and what does it keep?

The store has 1,000 snapshots, 10^6 files in all, made of a few imports and of clones of them: what
a mount could be slow at is their number.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.commands import BenchError, dedupfs, drop_caches, run, unmount, why_not_cold
from bench.datasets import tiny_tree
from bench.harness import Harness, Record, rotated, seconds_of
from bench.peers import FuseOverlay, Overlay
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store

SNAPSHOTS = 1_000
FILES_EACH = 1_000
BASES = 10
SECONDS = 20


def measure(harness: Harness) -> None:
    snapshots, files = harness.scale.count(SNAPSHOTS), harness.scale.count(FILES_EACH)
    with harness.borrowed("opening") as place:
        store = make_store(place, snapshots, files)
        empty = place / "empty"
        dedupfs("init", empty)
        _mounts(harness, place, store, empty, f"{snapshots} snapshots of {files} files each")
        _memory(harness, place, store, f"{snapshots * files} files")


def make_store(place: Path, snapshots: int, files: int, bases: int = BASES) -> Path:
    """Make a store: some different trees, imported, and clones of them."""
    store = place / "store"
    dedupfs("init", store)
    bases = min(bases, snapshots)
    for number in range(bases):
        tree = tiny_tree(place / f"base-{number}", files, seed=number)
        dedupfs("import", store, tree, f"snapshot-{number:04d}")
    with Store.open(store) as opened:
        catalog = SnapshotCatalog(opened)
        for number in range(bases, snapshots):
            catalog.clone(f"snapshot-{number % bases:04d}", f"snapshot-{number:04d}")
    return store


def mount_seconds(store: Path, mountpoint: Path) -> float:
    """Return the time from the command's start to the end of the first listing; unmount."""
    try:
        return seconds_of(
            lambda: (dedupfs("mount", store, mountpoint, "--ephemeral"), os.listdir(mountpoint))
        )
    finally:
        if mountpoint.is_mount():
            dedupfs("umount", mountpoint)


def _mounts(harness: Harness, place: Path, store: Path, empty: Path, note: str) -> None:
    mountpoint = place / "mnt"
    mountpoint.mkdir()
    ways: dict[str, Callable[[], float]] = {
        "dedupfs": lambda: mount_seconds(store, mountpoint) * 1000,
        "dedupfs, empty store": lambda: mount_seconds(empty, mountpoint) * 1000,
    }
    record = Record(("mount-large",), list(ways))
    bases = place / "bases"
    bases.mkdir()
    for base in place.glob("base-*"):
        base.rename(bases / base.name)
    for kind in (Overlay, FuseOverlay):
        peer = kind(place / kind.name)
        if why := peer.missing():
            record.fail(peer.name, why)
        else:
            peer.ready(bases)
            ways[peer.name] = partial(_layer_milliseconds, peer)
    for name in ("borg", "restic"):
        record.fail(name, f"making {SNAPSHOTS:,} backups takes too long")
    for number in harness.each_round(SECONDS):
        for name in rotated(list(ways), number):
            record.turn("mount-large", name, number, ways[name])
    for result in record.conclude(f"{note}; overlayfs and fuse-overlayfs over {BASES} of them"):
        harness.add(result)


def _layer_milliseconds(peer: Overlay | FuseOverlay) -> float:
    peer.clear()
    try:
        return seconds_of(lambda: (peer.mount(), os.listdir(peer.mountpoint))) * 1000
    finally:
        unmount(peer.mountpoint)


# --- memory ---------------------------------------------------------------------------------------


def _memory(harness: Harness, place: Path, store: Path, note: str) -> None:
    mountpoint = place / "mnt"
    record = Record(("memory",), ("dedupfs", "dedupfs, after the mount"))

    def walked() -> float:
        seconds = seconds_of(lambda: run("find", mountpoint, "-size", "+1000000k"))
        print(f"  find over {note}: {seconds:.1f} s", flush=True)
        if not why_not_cold():
            drop_caches()
        return float(memory_bytes(store))

    dedupfs("mount", store, mountpoint, "--view", "memory")
    try:
        fresh = "dedupfs, after the mount"
        record.turn("memory", fresh, 0, lambda: float(memory_bytes(store)))
        record.turn("memory", "dedupfs", 0, walked)
    finally:
        dedupfs("umount", mountpoint)
    how = "the kernel's caches dropped" if not why_not_cold() else "caches kept: needs root"
    for result in record.conclude(f"{note}; PSS of daemon and supervisor, {how}"):
        harness.add(result)


def memory_bytes(store: Path) -> int:
    """Return the proportional memory of all processes that were started for ``store``."""
    total = 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"mount" in words and os.fsencode(store) in words:
                total += _pss(process)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    if not total:
        raise BenchError("no process of the mount was found")
    return total


def _pss(process: Path) -> int:
    for line in (process / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
