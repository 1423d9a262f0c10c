"""Pruning checkpoint directories: weights go, evidence stays, nothing outside is touched.

Method: real directories; what is left afterwards is compared name by name.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dedupfs.errors import NotFoundError, SourceError, UsageError
from dedupfs.maintenance.checkpoints import (
    EVIDENCE,
    Options,
    Plan,
    freed_bytes,
    opened,
    plan,
    remove,
)
from dedupfs.maintenance.retention import Best, Chooser, Every, Last, Moment, Policy

SECOND_NS = 10**9
WEIGHTS = b"w" * 20_000


@pytest.fixture
def ckpts(tmp_path: Path) -> Path:
    """Checkpoints as trainers leave them; the number of the step is the age, too."""
    top = tmp_path / "ckpts"
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        directory = top / f"step-{step}"
        (directory / "optimizer").mkdir(parents=True)
        (directory / "model.safetensors").write_bytes(WEIGHTS)
        (directory / "optimizer" / "shard-0.pt").write_bytes(WEIGHTS)
        (directory / "config.json").write_text("{}")
        state = {"step": step, "log": [{"loss": 9}, {"loss": loss}, {"lr": 0.1}]}
        (directory / "state.json").write_text(json.dumps(state))
        for path in directory.rglob("*"):
            os.utime(path, ns=(step * SECOND_NS, step * SECOND_NS))
    (top / "tokenizer").mkdir()
    (top / "tokenizer" / "vocabulary.bin").write_bytes(WEIGHTS)
    return top


def planned(
    top: Path, *rules: Chooser, options: Options | None = None, problems: list[str] | None = None
) -> Plan:
    told = [] if problems is None else problems
    with opened(top) as fd:
        return plan(
            fd,
            Policy(rules),
            Moment(0),
            options or Options(),
            lambda name, message: told.append(f"{name}: {message}"),
        )


def pruned(top: Path, *rules: Chooser, options: Options | None = None) -> list[str]:
    options = options or Options()
    found = planned(top, *rules, options=options)
    with opened(top) as fd:
        for checkpoint in found.going:
            remove(fd, checkpoint, options)
    return [one.name for one in found.going]


def tree(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*")}


def test_weights_go_and_evidence_stays(ckpts: Path) -> None:
    before = tree(ckpts)
    foretold = freed_bytes(planned(ckpts, Last(1), Every(2)).going)
    assert foretold == sum(
        (ckpts / f"step-{step}" / name).stat().st_blocks * 512
        for step in (1, 3)
        for name in ("model.safetensors", "optimizer/shard-0.pt")
    )
    assert pruned(ckpts, Last(1), Every(2)) == ["step-1", "step-3"]
    gone = ("model.safetensors", "optimizer/shard-0.pt", "optimizer")
    assert tree(ckpts) == before - {f"step-{step}/{name}" for step in (1, 3) for name in gone}


def test_one_that_was_pruned_counts_no_more(ckpts: Path) -> None:
    assert pruned(ckpts, Last(2)) == ["step-1", "step-2"]
    assert pruned(ckpts, Last(2)) == []
    assert [one.candidate.name for one in planned(ckpts, Last(9)).decisions] == ["step-4", "step-3"]


def test_metrics_are_the_last_ones_that_a_file_tells(ckpts: Path) -> None:
    options = Options(metrics_name="state.json")
    assert pruned(ckpts, Best("log.loss", False, 1), options=options) == [
        "step-1",
        "step-3",
        "step-4",
    ]
    with pytest.raises(UsageError, match="none has a number"):
        planned(ckpts, Best("los", False, 1), options=options)


def test_a_checkpoint_that_cannot_be_read_stays_and_is_told(ckpts: Path) -> None:
    (ckpts / "step-1" / "state.json").write_text("{")
    problems: list[str] = []
    found = planned(ckpts, Last(1), options=Options(metrics_name="state.json"), problems=problems)
    assert [one.name for one in found.going] == ["step-2", "step-3"]
    assert [line.partition(" is no JSON")[0] for line in problems] == ["step-1: state.json"]


def test_protected_patterns(ckpts: Path) -> None:
    options = Options(protected=("optimizer", "*.json"))
    assert pruned(ckpts, Last(3), options=options) == ["step-1"]
    assert {"step-1/optimizer/shard-0.pt", "step-1/config.json"} <= tree(ckpts)
    options = Options(protected=("optimizer/*.pt",))
    assert pruned(ckpts, Last(2), options=options) == ["step-1", "step-2"]
    assert {name for name in tree(ckpts) if name.startswith("step-2")} == {
        "step-2",
        "step-2/optimizer",
        "step-2/optimizer/shard-0.pt",
    }
    assert pruned(ckpts, Last(1), options=Options(protected=())) == ["step-1", "step-2", "step-3"]
    assert {name.partition("/")[0] for name in tree(ckpts)} == {"step-4", "tokenizer"}
    assert "*.py" in EVIDENCE


def test_nothing_is_reached_through_a_symbolic_link(ckpts: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.bin").write_bytes(WEIGHTS)
    (ckpts / "step-0").symlink_to(outside)
    (ckpts / "step-1" / "more").symlink_to(outside)
    (ckpts / "step-1" / "model.bin").symlink_to(outside / "model.bin")
    (ckpts / "latest").symlink_to(ckpts / "step-2")
    (ckpts / "best.pt").symlink_to("step-3/model.safetensors")
    assert pruned(ckpts, Last(1)) == ["step-1"]
    assert (outside / "model.bin").read_bytes() == WEIGHTS
    assert not (ckpts / "step-1" / "more").is_symlink()
    assert (ckpts / "best.pt").read_bytes() == WEIGHTS
    reasons = {one.candidate.name: one.reasons for one in planned(ckpts, Last(1)).decisions}
    assert reasons["step-2"] == reasons["step-3"] == ("pinned",)


def test_what_changes_meanwhile_stays(ckpts: Path) -> None:
    with opened(ckpts) as fd:
        found = planned(ckpts, Last(1))
        (ckpts / "step-1" / "model.safetensors").write_bytes(b"being written")
        (ckpts / "step-2" / "new.pt").write_bytes(b"new")
        before = tree(ckpts / "step-1"), tree(ckpts / "step-2")
        for checkpoint in found.going[:2]:
            with pytest.raises(SourceError, match="changed meanwhile"):
                remove(fd, checkpoint, Options())
        assert (tree(ckpts / "step-1"), tree(ckpts / "step-2")) == before


def test_bytes_of_linked_files_count_with_their_last_name(ckpts: Path) -> None:
    shared = ckpts / "step-1" / "model.safetensors"
    for step in (2, 4):
        (ckpts / f"step-{step}" / "model.safetensors").unlink()
        os.link(shared, ckpts / f"step-{step}" / "model.safetensors")
    blocks = shared.stat().st_blocks * 512
    assert freed_bytes(planned(ckpts, Every(4)).going) == 4 * blocks
    assert freed_bytes(planned(ckpts, Every(3)).going) == 4 * blocks


def test_stores_and_missing_names_are_refused(ckpts: Path, path: Path, store: object) -> None:
    for inside in (path, path / "packs"):
        with pytest.raises(UsageError, match="is a store or in one"), opened(inside):
            pass
    with pytest.raises(UsageError, match="cannot open"), opened(ckpts / "none"):
        pass
    with pytest.raises(NotFoundError, match="'other-\\*'"):
        planned(ckpts, Last(1), options=Options(patterns=("other-*",)))
    found = planned(ckpts, Last(1), options=Options(patterns=("tok*", "step-4")))
    assert {one.candidate.name for one in found.decisions} == {"tokenizer", "step-4"}


def test_a_bottomless_directory_stays_and_is_told(ckpts: Path) -> None:
    directory = ckpts / "step-1"
    for _ in range(70):
        directory = directory / "d"
        directory.mkdir()
    problems: list[str] = []
    found = planned(ckpts, Last(1), problems=problems)
    assert [one.name for one in found.going] == ["step-2", "step-3"]
    assert problems == ["step-1: directories deeper than 64"]
