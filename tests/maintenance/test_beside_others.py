"""check, scrub and usage beside a process that imports, removes and collects all the time.

Method: the other process is a real one; while it works, none of the walkers may see a problem that
is none.
"""

from __future__ import annotations

import subprocess
import sys
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
import sys
from pathlib import Path
from dedupfs.errors import MissingRecordError
from dedupfs.maintenance.gc import collect
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store
from tests.maintenance.samples import import_directory
sources = [Path(name) for name in sys.argv[2:]]
with Store.open(Path(sys.argv[1])) as store:
    catalog = SnapshotCatalog(store)
    print("working", flush=True)
    number = 0
    while number < 20:
        try:
            import_directory(store, sources[number % len(sources)], f"other-{number}")
        except MissingRecordError:
            continue  # gc took what it had found, each time that it tried
        if number > 1:
            catalog.remove([f"other-{number - 2}"])
        if number % 2:
            collect(store)
        number += 1
"""


@pytest.mark.slow
def test_nobody_sees_a_problem_that_is_none(filled: Store, tmp_path: Path) -> None:
    sources = [make_directory(tmp_path / f"d{seed}", seed) for seed in range(3)]
    path = filled.path
    filled.close()
    with Store.open(path) as store:
        other = subprocess.Popen(
            [sys.executable, "-c", OTHER, path, *sources], stdout=subprocess.PIPE, text=True
        )
        with other:
            assert other.stdout is not None
            assert other.stdout.readline() == "working\n"
            while other.poll() is None:
                look(store)
        assert other.returncode == 0
        look(store)
        assert [info.name for info in SnapshotCatalog(store).list()] == [
            "first",
            "other-18",
            "other-19",
        ]


def look(store: Store) -> None:
    """Let every walker pass; none may find anything wrong."""
    report = check(store)
    assert report.ok, report.problems
    assert report.snapshots >= 1
    scrubbed = scrub(store)
    assert scrubbed.ok, scrubbed.damage
    assert store_usage(store).snapshots >= 1
    collect(store)
