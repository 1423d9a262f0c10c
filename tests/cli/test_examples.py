"""The examples of --help and of docs/cli.md do what they say: each is run.

Method: in this process, each in a copy of one directory that has what examples speak of. What they
have in /data lies in that directory, too.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.namespace.inodes import ROOT_INODE
from dedupfs.namespace.view import Caller, View
from dedupfs.store import Store
from tests.cli.conftest import Run
from tests.cli.test_man import documented_examples, examples

ELSEWHERE = re.compile(r"[ :](?:~|/(?:workspace|mnt|srv|var))")
"""In a mount, or in a place of the machine's that is no test's."""
LEFT_OUT = {
    "doctor": "says 1 where something is missing",
    "metrics": "needs an extra, and so does the page of report: they have tests of their own",
    "gc --target-free": "asks for more than a small disk has",
    "mount": "tests/cli/test_mount_cli.py starts it, in a process of its own",
    "report": "see metrics",
    "run": "mounts",
    "status": "tells of the machine's mounts",
    "top": "does not end",
    "checkout verify": "needs a checkout that was made where it is",
    "checkout update": "the same",
    "checkout rm": "the same",
    "dedupe --undo": "the same",
}


def runnable() -> list[str]:
    found = []
    for line in dict.fromkeys([*examples(), *documented_examples()]):
        words = line.split()
        out = {" ".join(words[1:2]), " ".join(words[1:3])} & LEFT_OUT.keys()
        if not out and not ELSEWHERE.search(line):
            found.append(line.replace(" /data/", " data/"))
    return found


@pytest.fixture
def prepared(tmp_path: Path, run: Run) -> Path:
    """A directory with a store and what is to be taken in."""
    place = tmp_path / "prepared"
    for name in ("data/ckpt-1000/optimizer", "data/ckpt-1000/etc", "ckpts/run7-1", "ckpts/run7-2"):
        (place / name).mkdir(parents=True)
    for number, directory in enumerate(["run7-1", "run7-2"]):
        state = {"log_history": [{"eval_loss": 2.0 - number}]}
        (place / "ckpts" / directory / "trainer_state.json").write_text(json.dumps(state))
    source = place / "data" / "ckpt-1000"
    for name in ("model.safetensors", "optimizer/state", "config.json", "etc/hosts"):
        (source / name).write_text("text\n" * 2000)
    store = place / "store"
    run("init", store, "--chunk-size", "4KiB")
    for name in ("step-2000", "monday", "tuesday", "nightly", "run7-1", "run7-2", "old"):
        run("import", store, source, name, "--tag", "loss=1.5", "--tag", "accuracy=0.5")
    run("rename", store, "old", "step-1000")
    run("tag", store, "step-1000", "run=a7", "draft=yes")
    with Store.open(store) as opened:
        for name in ("job17", "default"):
            view = View.bring_back(opened, name)
            view.mkdir(ROOT_INODE, b"out", 0o755, Caller(0, 0))
            view.close()
    return place


def test_each_example_does_what_it_says(
    prepared: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = runnable()
    assert len(lines) >= 50
    for number, line in enumerate(lines):
        words = shlex.split(line)[1:]
        place = tmp_path / f"example{number}"
        shutil.copytree(prepared, place)
        if words[0] == "init" or (words[0] == "import" and "step-1000" in words):
            shutil.rmtree(place / "store")
        monkeypatch.chdir(place)
        if words[0] == "import":
            run("init", "store")
        run(*words)
        with Store.open(place / "store") as store:
            assert check(store).ok, line
        shutil.rmtree(place)
