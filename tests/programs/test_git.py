"""git keeps a repository on a mount as it does on any file system.

Method: the same commands with the same dates on a native directory and on the mount make the same
commit ids; git's own fsck, and a status that may not read file content again, judge what is left
after a remount and after the daemon was killed.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conftest import Scale
from tests.fuse.harness import read_until
from tests.programs.place import Place, listing, run, start_python

pytestmark = [pytest.mark.unmeasured, pytest.mark.fuse, pytest.mark.program("git")]

ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_AUTHOR_DATE": "2031-01-05T00:00:00Z",
    "GIT_COMMITTER_DATE": "2031-01-05T00:00:00Z",
}


def git(repository: Path, *arguments: str | Path) -> str:
    return run("git", "-C", repository, *arguments, env=ENVIRONMENT)


def write_files(repository: Path, seed: int, file_count: int) -> None:
    """Text of many small files, a binary of a few chunks, a link and a program."""
    source = random.Random(seed)
    for number in range(file_count):
        directory = repository / f"d{number % 7}" / f"e{number % 3}"
        directory.mkdir(parents=True, exist_ok=True)
        lines = [f"line {source.randrange(1000)}" for _ in range(source.randrange(1, 200))]
        (directory / f"f{number}.txt").write_text("\n".join(lines))
    (repository / "binary").write_bytes(source.randbytes(300_000 + seed))
    (repository / "program").write_text(f"#!/bin/sh\necho {seed}\n")
    (repository / "program").chmod(0o755)
    (repository / "link").unlink(missing_ok=True)
    (repository / "link").symlink_to(f"d{seed % 7}")


def make_history(repository: Path, commit_count: int, file_count: int) -> None:
    repository.mkdir()
    git(repository, "init", "--quiet", "--initial-branch=main")
    for number in range(commit_count):
        write_files(repository, number, file_count)
        git(repository, "add", "--all")
        git(repository, "commit", "--quiet", "--message", f"commit {number}")
    git(repository, "checkout", "--quiet", "-b", "side", "HEAD~1")
    git(repository, "rm", "-r", "--quiet", "d1")
    write_files(repository, 100, file_count // 2)
    git(repository, "mv", "binary", "moved")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "side")
    git(repository, "tag", "-a", "-m", "tag", "v1")
    git(repository, "checkout", "--quiet", "main")


def is_clean_by_stat_alone(repository: Path) -> bool:
    """Whether every file has the very attributes that the index knows: diff-files reads no file."""
    return git(repository, "diff-files") == ""


def test_histories_clones_and_branches_are_what_they_are_natively(
    place: Place, scale: Scale
) -> None:
    commits, files = scale(3, 8), scale(40, 400)
    for top in place.both():
        make_history(top / "origin", commits, files)
        git(top, "clone", "--quiet", "--no-local", top / "origin", top / "clone")
        git(top, "clone", "--quiet", "--branch", "side", top / "origin", top / "linked")
        for branch in ("side", "main~1", "main"):
            git(top / "origin", "checkout", "--quiet", branch)
            assert git(top / "origin", "status", "--porcelain") == ""
        git(top / "origin", "gc", "--quiet", "--aggressive", "--prune=now")
        git(top / "origin", "worktree", "add", "--quiet", top / "tree", "side")
    native, mount = place.both()
    for name in ("origin", "clone", "linked", "tree"):
        assert git(mount / name, "show-ref") == git(native / name, "show-ref")
        on_mount, natively = (
            listing(top / name, without=[".git"], times=False) for top in (mount, native)
        )
        assert on_mount == natively
        assert git(mount / name, "fsck", "--full", "--strict") == ""
    assert git(mount / "origin", "count-objects") == git(native / "origin", "count-objects")

    place.remount()
    for name in ("origin", "clone", "linked", "tree"):
        assert is_clean_by_stat_alone(mount / name)
        assert git(mount / name, "status", "--porcelain") == ""
        assert git(mount / name, "fsck", "--full", "--strict") == ""


COMMITTER = """
import os, subprocess, sys
repository, number = sys.argv[1], 0
while True:
    with open(f"{repository}/file{number % 5}", "w") as file:
        file.write(f"{number}\\n" * 5000)
    for words in (["add", "--all"], ["commit", "--quiet", "--message", str(number)]):
        subprocess.run(["git", "-C", repository, *words], check=True)
    print(number, flush=True)
    number += 1
"""


def test_every_commit_that_git_made_is_there_after_the_daemon_was_killed(
    place: Place, scale: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for round_number in range(scale(1, 10)):
        repository = place.mount / f"r{round_number}"
        repository.mkdir()
        git(repository, "init", "--quiet")
        committer = start_python(COMMITTER, repository)
        assert committer.stdout is not None
        with committer, committer.stdout:
            enough = 3 + round_number * 2
            said = read_until(committer.stdout, lambda said: said.count(b"\n") >= enough)  # noqa: B023
            place.kill_daemon()
            said += committer.stdout.read()
            assert committer.wait() != 0
        place.mount_again()
        done = int(said.split(b"\n")[-2])
        git(repository, "fsck", "--full", "--strict", "--no-dangling")
        assert int(git(repository, "log", "-1", "--format=%s")) in (done, done + 1)
        assert len(git(repository, "log", "--format=%H").split()) >= done + 1
        for lock in (repository / ".git").rglob("*.lock"):  # as git itself says after a crash
            lock.unlink()
        git(repository, "add", "--all")
        git(repository, "commit", "--quiet", "--allow-empty", "--message", "after")
        assert git(repository, "status", "--porcelain") == ""
