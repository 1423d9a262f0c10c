"""check, scrub and usage beside a process that imports, removes and collects all the time.

Method: the other process is a real one that works until it is told to stop; whatever it does, none
of the walkers may see a problem that is none.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.scrub import scrub
from dedupfs.maintenance.usage import store_usage
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store
from tests.maintenance.samples import make_directory

OTHER = """
import select, sys
from pathlib import Path
from dedupfs.errors import MissingRecordError
from dedupfs.maintenance.gc import collect
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store
from tests.maintenance.samples import import_directory
sources = [Path(name) for name in sys.argv[2:]]
with Store.open(Path(sys.argv[1])) as store:
    catalog = SnapshotCatalog(store)
    number = 0
    print("working", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            import_directory(store, sources[number % len(sources)], f"other-{number + 1}")
        except MissingRecordError:
            continue  # gc took what it had found, each time that it tried
        number += 1
        if number > 2:
            catalog.remove([f"other-{number - 2}"])
        if number % 2:
            collect(store)
    print(number, flush=True)
"""


@contextmanager
def other_process(path: Path, *sources: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, path, *sources],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "working\n"
        yield process
        process.stdin.write("stop\n")
        process.stdin.flush()
        assert int(process.stdout.readline()) > 1
    assert process.returncode == 0


@pytest.mark.slow
def test_nobody_sees_a_problem_that_is_none(filled: Store, tmp_path: Path) -> None:
    sources = [make_directory(tmp_path / f"d{seed}", seed) for seed in range(3)]
    path = filled.path
    filled.close()
    with Store.open(path) as store, other_process(path, *sources):
        for _ in range(25):
            report = check(store)
            assert report.ok, report.problems
            assert report.snapshots >= 1
            scrubbed = scrub(store)
            assert scrubbed.ok, scrubbed.damage
            assert store_usage(store).snapshots >= 1
            collect(store)
    with Store.open(path) as store:
        others = [info.name for info in SnapshotCatalog(store).list() if info.name != "first"]
        SnapshotCatalog(store).remove(others)
        collect(store)
        assert check(store).ok
        assert scrub(store).ok
