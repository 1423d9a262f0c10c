"""What must not grow with the number of files, of snapshots, or with the store, is shown not to.

Large stores are made of data that compress well: what could be slow is the number of chunks, which
is the real one, and the disk would not hold the rest.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import collecting
from bench.commands import BenchError, dedupfs, reason, remove, run
from bench.datasets import change_files, compressible_file, grow_old, tiny_tree
from bench.harness import Harness, seconds_of
from bench.opening import make_store, mount_seconds
from bench.results import Curve, human
from bench.views import CLONE_XATTR

FILES = {False: (1_000, 5_000, 25_000), True: (10_000, 100_000, 1_000_000)}
SNAPSHOTS = {False: (10, 100, 400), True: (10, 100, 1_000)}
STORE_MIB = {False: (128, 512, 2048), True: (1 << 10, 10 << 10, 40 << 10)}
"""In small and in full runs."""
FILES_EACH = 500
SOURCE_MIB_MAX = 1024
TIMES = 3

Point = dict[str, float]


def measure(harness: Harness, *, full: bool) -> None:
    for work in (_over_files, _over_snapshots, _over_store, _over_garbage):
        try:
            work(harness, full)
        except (BenchError, OSError) as error:
            print(f"bench: {work.__name__.strip('_')}: {reason(error)}", flush=True)


def _over_files(harness: Harness, full: bool) -> None:
    counts = [harness.scale.count(count) for count in FILES[full]]
    each: list[Point] = []
    flat: list[Point] = []
    for count in counts:
        with harness.borrowed("files") as place:
            tree, store = tiny_tree(place / "tree", count), place / "store"
            dedupfs("init", store)
            grow_old()
            micros = 1e6 / count
            point = {"import, new": _import(store, tree, "first") * micros}
            point["import, unchanged"] = _import(store, tree, "again") * micros
            with _mounted(store, place) as top:
                point["find, first"] = _find(top / "first") * micros
                point["find, again"] = _find(top / "first") * micros
            each.append(point)
            flat.append(_always(store, place, "first"))
    _add(
        harness, "files-each", "Time for each file, start-up included", "files", "us", counts, each
    )
    _add(harness, "files", "A tree of more files", "files", "ms", counts, flat)


def _over_snapshots(harness: Harness, full: bool) -> None:
    counts = [harness.scale.count(count) for count in SNAPSHOTS[full]]
    points = []
    for count in counts:
        with harness.borrowed("snapshots") as place:
            store = make_store(place, count, FILES_EACH, bases=1)
            point = _always(store, place, "snapshot-0000")
            next_ones = []
            for number in range(TIMES):
                change_files(place / "base-0", 5, number)
                next_ones.append(_import(store, place / "base-0", f"next-{number}"))
            point["import of the next snapshot"] = statistics.median(next_ones) * 1000
            points.append(point)
    _add(harness, "snapshots", "A store of more snapshots", "snapshots", "ms", counts, points)


def _over_store(harness: Harness, full: bool) -> None:
    sizes = [max(1, round(size * harness.scale.factor)) for size in STORE_MIB[full]]
    points = []
    with harness.borrowed("store-size") as place:
        store, source = place / "store", place / "source"
        dedupfs("init", store)
        stored = 0
        for size in sizes:
            harness.require_room((size - stored << 20) // 6 + (2 << 30))
            while stored < size:
                part = min(SOURCE_MIB_MAX, size - stored)
                source.mkdir()
                compressible_file(source / "model.bin", part << 20, f"part {stored}")
                dedupfs("import", store, source, f"part-{stored}")
                remove(source)
                stored += part
            point = _always(store, place, "part-0")
            with _mounted(store, place) as top:
                changes = [_change(top / "part-0" / "model.bin", n) for n in range(TIMES)]
                point["4 KiB changed, fsync"] = statistics.median(changes) * 1000
            tree = tiny_tree(place / "tree", 200, seed=size)
            point["import of 200 small files"] = _import(store, tree, f"small-{size}") * 1000
            remove(tree)
            points.append(point)
    gib = [size / 1024 for size in sizes]
    _add(harness, "store", "A larger store", "GiB", "ms", gib, points)


def _over_garbage(harness: Harness, full: bool) -> None:
    collecting.measure(harness, full=full)


# --- single steps ---------------------------------------------------------------------------------


def _always(store: Path, place: Path, snapshot: str) -> Point:
    """Measure what no store may be slow at: its mount, and a new view in it."""
    mountpoint = place / "mnt"
    mountpoint.mkdir(exist_ok=True)
    mounts = [mount_seconds(store, mountpoint) for _ in range(TIMES)]
    point = {"mount, until ls answers": statistics.median(mounts) * 1000}
    with _mounted(store, place) as top:
        views = []
        for number in range(TIMES):
            view = top / f"view-{number}"
            started = time.perf_counter()
            view.mkdir()
            try:
                os.setxattr(view, CLONE_XATTR, snapshot.encode())
            except OSError:
                return point
            os.listdir(view)
            views.append(time.perf_counter() - started)
        point["new writable view"] = statistics.median(views) * 1000
    return point


@contextmanager
def _mounted(store: Path, place: Path) -> Iterator[Path]:
    mountpoint = place / "mnt"
    mountpoint.mkdir(exist_ok=True)
    dedupfs("mount", store, mountpoint, "--ephemeral")
    try:
        yield mountpoint
    finally:
        dedupfs("umount", mountpoint)


def _import(store: Path, source: Path, name: str) -> float:
    return seconds_of(lambda: dedupfs("import", store, source, name))


def _find(top: Path) -> float:
    return seconds_of(lambda: run("find", top, "-size", "+1000000k"))


def _change(path: Path, number: int) -> float:
    def change() -> None:
        fd = os.open(path, os.O_WRONLY)
        try:
            os.pwrite(fd, b"%4096d" % number, (number + 1) * (path.stat().st_size // 5) & ~4095)
            os.fsync(fd)
        finally:
            os.close(fd)

    return seconds_of(change)


def _add(
    harness: Harness,
    key: str,
    title: str,
    x_name: str,
    unit: str,
    x: Sequence[float],
    points: Sequence[Point],
) -> None:
    names = [name for name in points[0] if all(name in point for point in points)]
    curve = Curve(
        key=key,
        title=title,
        x_name=x_name,
        unit=unit,
        x=list(x),
        y={name: [point[name] for point in points] for name in names},
    )
    harness.run.curves.append(curve)
    print(f"{title} ({x_name}: {', '.join(f'{value:g}' for value in x)})")
    for name, row in curve.y.items():
        cells = "  ".join(f"{human(value, unit):>12}" for value in row)
        print(f"  {name:<30} {cells}   last by first x{row[-1] / row[0]:.2f}", flush=True)
