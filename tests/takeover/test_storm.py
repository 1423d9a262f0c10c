"""Real programs while their daemon is killed again and again: they must not notice.

Method: a program runs on a mount; after random numbers of its own steps, seen in the clock of a
reader of the mount, the daemon is killed. The program's exit code and its result are those of a
native directory, and each call of the reader comes back. Seeds are printed.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.conftest import Scale
from tests.fuse.harness import REPOSITORY
from tests.takeover.conftest import Mount
from tests.takeover.harness import Supervised

pytestmark = [pytest.mark.fuse, pytest.mark.unmeasured]

TIMEOUT_S = 600
LOOKS_MAX = 400
"""A kill comes after at most so many looks at the mount."""


def storm(mounted: Supervised, command: list[str], kills: int, *, cwd: Path = REPOSITORY) -> None:
    """Run a command again and again until its daemons were killed so often."""
    seed = kills if os.environ.get("CI") == "true" else random.SystemRandom().randrange(1 << 32)
    say(f"{seed=}")
    dice = random.Random(seed)
    stop = mounted.kills + kills
    longest_s = 0.0
    log_path = mounted.store.parent / "said"
    while mounted.kills < stop:
        with log_path.open("wb") as log_file:
            process = subprocess.Popen(command, stdout=log_file, stderr=log_file, cwd=cwd)
        while process.poll() is None:
            for _look in range(dice.randrange(LOOKS_MAX)):
                began_s = time.monotonic()
                os.statvfs(mounted.path)
                longest_s = max(longest_s, time.monotonic() - began_s)
            if mounted.kills < stop:
                mounted.kill_daemon()
        assert process.returncode == 0, log_path.read_text()[-4000:]
    say(f"kills={mounted.kills} longest look={longest_s:.3f} s")


def say(line: str) -> None:
    """Print; pytest shows it when the test fails, and with -rP always."""
    sys.stdout.write(f"{line}\n")


def tree_digest(root: Path) -> dict[str, str]:
    """Return what each path below ``root`` is."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "directory"
    return found


def make_tree(root: Path, files: int) -> None:
    dice = random.Random(1)
    for number in range(files):
        path = root / f"d{number % 20}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(dice.randrange(8000)))
    os.symlink("d0/f0", root / "link")


CHURN = """
import os, random, sys
root, seed = sys.argv[1], int(sys.argv[2])
dice, model = random.Random(seed), {}
for step in range(600):
    name = f"{root}/{dice.randrange(12)}"
    match dice.randrange(6):
        case 0:
            data = dice.randbytes(dice.choice((10, 5000, 300_000)))
            with open(name, "wb") as file: file.write(data)
            model[name] = data
        case 1 if name in model:
            os.unlink(name); del model[name]
        case 2 if name in model:
            new = f"{root}/{dice.randrange(12)}"
            os.rename(name, new); model[new] = model.pop(name)
        case 3 if name in model:
            with open(name, "r+b") as file: file.seek(0, 2); file.write(b"more")
            model[name] += b"more"
        case 4:
            os.mkdir(name + ".d"); os.rmdir(name + ".d")
        case 5 if name in model:
            with open(name, "rb") as file: assert file.read() == model[name], name
assert {f"{root}/{n}" for n in os.listdir(root)} == set(model), (os.listdir(root), sorted(model))
for name, data in model.items():
    with open(name, "rb") as file: assert file.read() == data, name
    os.unlink(name)
"""


def test_a_program_that_churns_files_notices_nothing(mount: Mount, scale: Scale) -> None:
    mounted = mount()
    (mounted.path / "d").mkdir()
    storm(mounted, [sys.executable, "-c", CHURN, str(mounted.path / "d"), "7"], scale(6, 50))


@pytest.mark.program("tar")
def test_an_archive_is_unpacked_as_it_is(mount: Mount, scale: Scale, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_tree(source, scale(500, 5000))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(source, ".")
    mounted = mount()
    target = mounted.path / "target"
    target.mkdir()
    command = ["tar", "-C", str(target), "-xf", str(tmp_path / "a.tar"), "--recursive-unlink"]
    storm(mounted, command, scale(3, 50))
    assert tree_digest(target) == tree_digest(source)


@pytest.mark.program("git")
def test_git_checks_out_what_was_committed(mount: Mount, scale: Scale, tmp_path: Path) -> None:
    mounted = mount()
    work = mounted.path / "work"
    expected = {}

    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-C", work, *words], check=True, capture_output=True, timeout=TIMEOUT_S
        )

    work.mkdir()
    git("init", "-q", "-b", "main")
    git("config", "user.email", "a@b")
    git("config", "user.name", "a")
    for branch, files in (("main", 50), ("other", scale(150, 2000))):
        git("checkout", "-q", "-B", branch)
        make_tree(work / branch, files)
        git("add", ".")
        git("commit", "-q", "-m", branch)
        expected[branch] = {k: v for k, v in tree_digest(work).items() if not k.startswith(".git")}
    script = "git checkout -q main && git checkout -q other && git status --porcelain"
    storm(mounted, ["sh", "-c", script], scale(3, 50), cwd=work)
    found = {k: v for k, v in tree_digest(work).items() if not k.startswith(".git")}
    assert found == expected["other"]
    git("fsck", "--full", "--strict")


@pytest.mark.program("fio")
@pytest.mark.parametrize("direct", [0, 1])
def test_fio_verifies_what_it_wrote(mount: Mount, scale: Scale, direct: int) -> None:
    mounted = mount()
    size = scale(16, 128)
    command = ["fio", "--name=v", f"--filename={mounted.path}/f", f"--size={size}m", "--bs=16k"]
    command += ["--rw=randwrite", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]
    command += [f"--direct={direct}", "--fsync=64", "--ioengine=psync"]
    command += ["--verify_state_save=0"]  # in the directory that this runs in
    storm(mounted, command, scale(2, 50))


def test_a_call_between_two_daemons_comes_back(mount: Mount, scale: Scale) -> None:
    """No assertion on time: the pauses are printed."""
    mounted = mount()
    (mounted.path / "d").mkdir()
    pauses_s = []
    for _ in range(scale(5, 50)):
        mounted.kill_daemon()
        began_s = time.monotonic()
        os.listdir(mounted.path / "d")
        pauses_s.append(time.monotonic() - began_s)
    say(f"pauses: longest {max(pauses_s):.3f} s of {len(pauses_s)}")
    shutil.rmtree(mounted.path / "d")
