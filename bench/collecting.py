"""What gc costs by what it frees, not by the store; and how long a request waits beside it.

The same garbage is freed in stores of rising size. A request: a small file is made, written and
fsynced in a mount, again and again, while gc runs and while nothing else does.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.commands import BenchError, dedupfs, remove
from bench.datasets import tiny_tree
from bench.harness import Harness
from bench.results import Curve, human

GARBAGE_FILES = {False: 2_000, True: 20_000}
STORE_FILES = {False: (4_000, 20_000), True: (40_000, 200_000)}
"""In small and in full runs; the store's besides the garbage."""
REQUESTS = 300

Point = dict[str, float]


def measure(harness: Harness, *, full: bool) -> None:
    """Add the curve of both."""
    counts = [harness.scale.count(count) for count in STORE_FILES[full]]
    garbage = harness.scale.count(GARBAGE_FILES[full])
    points: list[Point] = []
    for count in counts:
        with harness.borrowed("gc") as place:
            store = place / "store"
            dedupfs("init", store)
            for name, files, seed in (("kept", count, 1), ("garbage", garbage, 2)):
                source = tiny_tree(place / "source", files, seed=seed)
                dedupfs("import", store, source, name)
                remove(source)
            point: Point = {}
            mountpoint = place / "mnt"
            mountpoint.mkdir()
            dedupfs("mount", store, mountpoint)
            try:
                turns = iter([True] * REQUESTS)
                longest_s = _longest_s(mountpoint, partial(next, turns, False))
                point["longest request, alone"] = longest_s * 1000
                dedupfs("rm", store, "garbage", "--no-gc")
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                command = [sys.executable, "-m", "dedupfs", "gc", str(store)]
                with subprocess.Popen(command, stdout=subprocess.DEVNULL) as gc:
                    longest_s = _longest_s(mountpoint, partial(_is_running, gc))
                point["longest request, beside gc"] = longest_s * 1000
                if gc.returncode:
                    raise BenchError(f"gc ended with {gc.returncode}")
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                point["gc, processor time"] = used_s * 1000
            finally:
                dedupfs("umount", mountpoint)
            points.append(point)
    _add(harness, garbage, counts, points)


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None


def _longest_s(mountpoint: Path, more: Callable[[], bool]) -> float:
    """Ask as long as there is ``more`` to wait for; return the longest wait."""
    longest_s = 0.0
    number = 0
    while more():
        began_s = time.perf_counter()
        fd = os.open(mountpoint / f"request-{number % 100}", os.O_CREAT | os.O_RDWR, 0o600)
        os.pwrite(fd, b"%200d" % number, 0)
        os.fsync(fd)
        os.close(fd)
        longest_s = max(longest_s, time.perf_counter() - began_s)
        number += 1
    return longest_s


def _add(harness: Harness, garbage: int, counts: list[int], points: list[Point]) -> None:
    curve = Curve(
        key="gc",
        title=f"gc of {garbage} files in a larger store",
        x_name="files kept",
        unit="ms",
        x=[float(count) for count in counts],
        y={name: [point[name] for point in points] for name in points[0]},
    )
    harness.run.curves.append(curve)
    print(f"{curve.title} ({curve.x_name}: {', '.join(map(str, counts))})")
    for name, row in curve.y.items():
        cells = "  ".join(f"{human(value, 'ms'):>12}" for value in row)
        print(f"  {name:<30} {cells}   last by first x{row[-1] / row[0]:.2f}", flush=True)
