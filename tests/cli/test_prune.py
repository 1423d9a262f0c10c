"""prune: what stays, what goes and why; what it frees; what is refused."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from dedupfs.cli import output
from dedupfs.maintenance.check import check
from dedupfs.maintenance.prune import plan, prune
from dedupfs.maintenance.retention import Last, Moment, Policy, Tagged
from dedupfs.maintenance.usage import disk_usage
from dedupfs.model import SnapshotInfo
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store
from tests.cli.conftest import Run
from tests.kills.place import ENVIRONMENT
from tests.maintenance import retention_model as model

KILOBYTES = 50_000


@pytest.fixture
def steps(run: Run, store_path: Path, tmp_path: Path) -> Path:
    """A store with the checkpoints of a run: most of each is the same, some of it its own."""
    directory = tmp_path / "ckpt"
    directory.mkdir()
    (directory / "frozen").write_bytes(random.Random(1).randbytes(4 * KILOBYTES))
    for step, loss in ((1000, "2.5"), (2000, "1.5"), (2500, "nan"), (3000, "1.75"), (3500, "1.9")):
        (directory / "head").write_bytes(random.Random(step).randbytes(KILOBYTES))
        run("import", store_path, directory, f"step-{step}", "--tag", f"loss={loss}")
    return store_path


def names(run: Run, store: Path) -> list[str]:
    return [snapshot["name"] for snapshot in run("ls", store, "--json").json]


def test_prune_shows_what_stays_what_goes_and_why(run: Run, steps: Path) -> None:
    words = ["--keep-last", 1, "--keep-every", 1000, "--keep-best", "loss:min"]
    shown = run("prune", "--dry-run", steps, *words).out.splitlines()
    assert shown[0].split() == ["NAME", "CREATED", "WHY"]
    assert [line.split()[:2] for line in shown[1:6]] == [
        ["keep", "step-3500"],
        ["keep", "step-3000"],
        ["remove", "step-2500"],
        ["keep", "step-2000"],
        ["keep", "step-1000"],
    ]
    assert shown[3].endswith("no rule keeps it")
    assert shown[4].endswith("best loss 1: 1.5, every 1000: 2000")
    assert shown[6] == "would remove 1 snapshot, would keep 4"
    freed = run("prune", "--dry-run", "--json", steps, *words).json["freed_bytes"]
    assert shown[7].startswith(f"would free {output.size(freed)}")
    assert KILOBYTES < freed < 2 * KILOBYTES, "one step's own bytes, and what tells where they are"
    assert len(names(run, steps)) == 5
    done = run("prune", steps, *words).out.splitlines()
    assert done[:6] == shown[:6]
    assert done[6:] == ["removed 1 snapshot, kept 4", shown[7].replace("would free", "freed")]
    assert names(run, steps) == ["step-1000", "step-2000", "step-3000", "step-3500"]
    assert "removed 0 snapshots, kept 4\nfreed 0 B" in run("prune", steps, *words).out


def test_prune_json_is_exact(run: Run, steps: Path) -> None:
    told = run("prune", "--dry-run", "--json", steps, "--keep-last", 2).json
    assert told["kept"] == ["step-3500", "step-3000"]
    assert told["removed"] == ["step-1000", "step-2000", "step-2500"]
    assert [one["reasons"] for one in told["snapshots"][1:3]] == [["last 2"], ["no rule keeps it"]]
    done = run("prune", "--json", steps, "--keep-last", 2).json
    assert done["freed_bytes"] == told["freed_bytes"] > 3 * KILOBYTES
    assert {**done, "dry_run": True, "frees_bytes": told["frees_bytes"]} == told
    assert told["frees_bytes"] > 2 * KILOBYTES
    assert done["frees_bytes"] is None


def test_a_hundred_snapshots_are_kept_as_the_rules_are_written(
    run: Run, steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", model.ZONE)
    time.tzset()
    seed = "prune" if os.environ.get("CI") == "true" else str(random.randrange(1 << 30))
    sys.stdout.write(f"seed={seed}\n")
    generator = random.Random(seed)
    history = []
    with Store.open(steps) as store:
        catalog = SnapshotCatalog(store)
        root = catalog.get("step-1000").root
        for number in range(100):
            time_ns = (1_700_000_000 + generator.randrange(400 * 86_400)) * 10**9
            tags = {"loss": f"{generator.random():.3f}"} if generator.random() < 0.8 else {}
            name = f"n-{number * 25}"
            history.append(model.Shot(number, name, time_ns, tags, generator.random() < 0.05))
            catalog.add(name, root, tags=tags, created_ns=time_ns)
            if history[-1].pinned:
                catalog.pin(name, True)
    expected = {
        shot.name
        for shot in history
        if shot.pinned
        or model.keeps_last(shot, history, 3)
        or model.keeps_periodic(shot, history, "daily", 7)
        or model.keeps_periodic(shot, history, "weekly", 5)
        or model.keeps_periodic(shot, history, "monthly", 20)
        or model.keeps_best(shot, history, "loss", False, 4)
        or model.keeps_every(shot, 500, "")
    }
    words = ["--keep-last", 3, "--keep-daily", 7, "--keep-weekly", 5, "--keep-monthly", 20]
    words += ["--keep-best", "loss:min=4", "--keep-every", 500]
    try:
        told = run("prune", "--json", steps, "n-*", *words).json
    finally:
        monkeypatch.undo()
        time.tzset()
    assert set(told["kept"]) == expected
    assert {name for name in names(run, steps) if name.startswith("n-")} == expected


def test_the_space_can_be_left_to_gc(run: Run, steps: Path) -> None:
    would = run("prune", "--dry-run", "--json", steps, "--keep-last", 1).json["freed_bytes"]
    assert "dedupfs gc" in run("prune", "--no-gc", steps, "--keep-last", 1).out
    assert run("gc", "--json", steps).json["freed_bytes"] == would


def test_patterns_limit_what_is_looked_at(run: Run, steps: Path) -> None:
    run("clone", steps, "step-1000", "other")
    run("prune", steps, "step-1*", "step-2*", "--keep-last", 1)
    assert names(run, steps) == ["other", "step-2500", "step-3000", "step-3500"]
    assert "'nothing*'" in run("prune", steps, "nothing*", "--keep-last", 1, code=1).err
    run("prune", steps, "step-3500", "--keep-last", 1)
    assert "step-3500" in names(run, steps)


def test_groups_are_pruned_each_by_itself(run: Run, steps: Path) -> None:
    for step in (10, 20):
        run("clone", steps, "step-1000", f"b-{step}")
        run("tag", steps, f"b-{step}", "run=b")
    for option in ("prefix", "tag:run"):
        told = run("prune", "--dry-run", "--json", steps, "--keep-last", 1, "--group-by", option)
        assert sorted(told.json["kept"]) == ["b-20", "step-3500"]
    shown = run("prune", "--dry-run", steps, "--keep-last", 1, "--group-by", "prefix").out
    assert shown.splitlines()[0].split() == ["GROUP", "NAME", "CREATED", "WHY"]


def test_pinned_snapshots_never_go(run: Run, steps: Path) -> None:
    run("pin", steps, "step-1000")
    told = run("prune", "--json", steps, "--keep-last", 1).json
    assert told["kept"] == ["step-3500", "step-1000"]
    assert told["snapshots"][-1]["reasons"] == ["pinned"]


WRONG: list[tuple[list[str], str]] = [
    ([], "at least one --keep option"),
    (["--keep-last", "0"], "'0' is no count"),
    (["--keep-daily", "-1"], "'-1' is no count"),
    (["--keep-weekly", "many"], "'many' is no count"),
    (["--keep-within", "5"], "'5' is no duration"),
    (["--keep-within", "2 days"], "is no duration"),
    (["--keep-within", "99999999999d"], "too long"),
    (["--keep-tag", "=x"], "KEY or KEY=VALUE"),
    (["--keep-best", "loss"], "METRIC:min or METRIC:max"),
    (["--keep-best", "loss:least"], "METRIC:min or METRIC:max"),
    (["--keep-best", "loss:min=some"], "'some' is no count"),
    (["--keep-best", "los:min"], "none has a number in a tag 'los'"),
    (["--keep-every", "0"], "'0' is no count"),
    (["--keep-every", "all"], "N or TAG:N"),
    (["--keep-last", "1", "--group-by", "run"], "tag:KEY, prefix or all"),
    (["--keep-tag", "release"], "no rule keeps any of them (5 in all)"),
]


def test_what_is_wrong_removes_nothing(run: Run, steps: Path) -> None:
    for words, said in WRONG:
        refused = run("prune", steps, *words, code=2)
        assert said in refused.err
        assert len(refused.err.splitlines()) == 1
    assert len(names(run, steps)) == 5


def test_everything_can_go_when_that_is_meant(run: Run, steps: Path) -> None:
    run("prune", steps, "--keep-tag", "release", "--allow-empty")
    assert names(run, steps) == []
    run("prune", steps, "--keep-last", 1)


def test_a_budget_lets_go_only_what_is_needed_the_oldest_first(run: Run, steps: Path) -> None:
    run("gc", steps)
    size = disk_usage(steps).disk_bytes
    words = [steps, "--keep-last", 1, "--max-size"]
    told = run("prune", "--json", *words, size).json
    assert told["removed"] == []
    assert told["snapshots"][-1]["reasons"] == ["there is room"]
    told = run("prune", "--json", *words, size - KILOBYTES * 3 // 2).json
    assert told["removed"] == ["step-1000", "step-2000"]
    assert disk_usage(steps).disk_bytes <= size - KILOBYTES * 3 // 2
    short = run("prune", *words, 1)
    assert "removed 2 snapshots, kept 1" in short.out
    assert "more would have to go" in short.err
    assert "no size" in run("prune", *words, "much", code=2).err
    assert names(run, steps) == ["step-3500"]


def test_a_budget_may_be_what_is_left_of_the_disk(run: Run, steps: Path) -> None:
    told = run("prune", "--json", steps, "--keep-last", 1, "--keep-free", 1).json
    assert told["removed"] == []
    told = run("prune", "--json", steps, "--keep-last", 2, "--keep-free", "1024PiB").json
    assert len(told["removed"]) == 3
    assert told["missing_bytes"] > 0


class Meddling(SnapshotCatalog):
    """A catalogue that other processes change between its being read and its being changed."""

    def __init__(self, store: Store, *commands: list[str]) -> None:
        super().__init__(store)
        self.commands = list(commands)

    def remove_unless_changed(
        self, going: Sequence[SnapshotInfo], staying: Sequence[SnapshotInfo] = ()
    ) -> SnapshotInfo | None:
        if self.commands:
            words = [sys.executable, "-m", "dedupfs", *self.commands.pop(0)]
            subprocess.run(words, env=ENVIRONMENT, check=True, timeout=120)
        return super().remove_unless_changed(going, staying)


def test_what_others_do_meanwhile_counts(steps: Path) -> None:
    path = os.fspath(steps)
    last = Policy((Last(1), Tagged("release")))
    with Store.open(steps) as store:
        catalog = Meddling(
            store,
            ["pin", path, "step-1000"],
            ["tag", path, "step-2000", "release=1"],
            ["rm", path, "step-3500", "--no-gc"],
        )
        assert plan(catalog, last, Moment(0)).names[:2] == ["step-1000", "step-2000"]
        done = prune(catalog, last, Moment(0))
        assert done.names == ["step-2500"]
        left = [info.name for info in SnapshotCatalog(store).list()]
        assert left == ["step-1000", "step-2000", "step-3000"]


def test_killed_between_removal_and_gc_the_next_gc_goes_on(run: Run, steps: Path) -> None:
    would = run("prune", "--dry-run", "--json", steps, "--keep-last", 1).json["freed_bytes"]
    program = (
        "import os, signal, sys; from dedupfs.cli import main, prune\n"
        "prune.collect_garbage = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", program, "prune", os.fspath(steps), "--keep-last", "1"]
    killed = subprocess.run(words, env=ENVIRONMENT, check=False, timeout=120)
    assert killed.returncode == -9
    assert names(run, steps) == ["step-3500"]
    with Store.open(steps) as store:
        assert check(store).ok
    assert run("gc", "--json", steps).json["freed_bytes"] == would


def test_prune_files_lists_and_removes(run: Run, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        directory = tmp_path / "ckpts" / f"step-{step}"
        directory.mkdir(parents=True)
        (directory / "model.pt").write_bytes(b"w" * 8192)
        os.utime(directory / "model.pt", (step, step))
        (directory / "state.json").write_text(f'{{"loss": {step}}}')
    words = [tmp_path / "ckpts", "--keep-last", 1, "--keep-best", "loss:min"]
    words += ["--metrics", "state.json"]
    shown = run("prune-files", "--dry-run", *words).out.splitlines()
    assert shown[-2] == "would remove step-2/model.pt (8.0 KiB)"
    assert shown[-1].startswith("would remove 1 file of 1 checkpoint: ")
    told = run("prune-files", "--dry-run", "--json", *words).json
    assert told["removed_files"] == ["step-2/model.pt"]
    assert "removed 1 file of 1 checkpoint" in run("prune-files", *words).out
    assert not (tmp_path / "ckpts" / "step-2" / "model.pt").exists()
    assert (tmp_path / "ckpts" / "step-2" / "state.json").exists()
    (tmp_path / "ckpts" / "step-1" / "state.json").write_text("{")
    run("prune-files", *words, code=7)
    assert "--keep option" in run("prune-files", tmp_path / "ckpts", code=2).err
