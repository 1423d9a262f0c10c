"""prune-files in a mount: weights of old checkpoints go in this view alone, whoever made them.

Method: the functions of the command, in a real mount whose daemon folds between look and removal.
"""

import os
import random
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.maintenance.checkpoints import Options, Plan, freed_bytes, opened, plan, remove
from dedupfs.maintenance.retention import Last, Moment, Policy
from dedupfs.namespace import live
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store.store import Store
from tests.fuse.harness import Daemons, Mounted

SECOND_NS = 10**9
WEIGHTS_BYTES = 600_000
ZEROS_BYTES = 100_000
"""So few are kept as they came until a fold."""

pytestmark = pytest.mark.fuse


def make(top: Path, step: int) -> None:
    """Make a checkpoint, as sparse as optimizers leave theirs."""
    directory = top / f"step-{step}"
    (directory / "optimizer").mkdir(parents=True)
    weights = random.Random(step).randbytes(WEIGHTS_BYTES)
    (directory / "model.bin").write_bytes(weights)
    (directory / "optimizer" / "shard.pt").write_bytes(bytes(ZEROS_BYTES) + weights[:1000])
    os.link(directory / "model.bin", directory / "same.bin")
    (directory / "config.json").write_text("{}")
    for path in directory.rglob("*"):
        os.utime(path, ns=(step * SECOND_NS, step * SECOND_NS))


def fold(mounted: Mounted) -> None:
    (daemon,) = live.daemons(mounted.store)
    live.ask(daemon.socket_path, live.Fold())


def look(top: int) -> Plan:
    problems: list[str] = []
    found = plan(
        top, Policy((Last(1),)), Moment(0), Options(), lambda *told: problems.append(str(told))
    )
    assert not problems
    return found


def test_weights_go_in_one_view_and_evidence_stays(daemons: Daemons) -> None:
    mounted = daemons.start()
    make(mounted.path, 1)
    (daemon,) = live.daemons(mounted.store)
    live.ask(daemon.socket_path, live.Commit("step-10", b"step-1", {}))
    for step in (2, 3):
        make(mounted.path, step)
    os.utime(mounted.path / "step-10" / "model.bin", ns=(0, 0))
    with opened(mounted.path) as top:
        found = look(top)
        assert [one.name for one in found.going][1:] == ["step-10", "step-2"]
        assert freed_bytes(found.going) >= WEIGHTS_BYTES
        fold(mounted)  # zeros become holes: other blocks, but no change
        for checkpoint in found.going:
            remove(top, checkpoint, Options())
        assert not look(top).going
    left = {str(path.relative_to(mounted.path)) for path in mounted.path.rglob("*")}
    pruned = {f"step-{n}{tail}" for n in (1, 2, 10) for tail in ("", "/config.json")}
    assert {name for name in left if not name.startswith("step-3")} == pruned
    assert (mounted.path / "step-3" / "same.bin").stat().st_nlink == 2
    fold(mounted)
    mounted.end()
    with Store.open(mounted.store) as store:
        assert SnapshotCatalog(store).get("step-10").root.count == 5, "a snapshot never changes"
        report = check(store)
    assert report.ok, [str(problem) for problem in report.problems]
