"""Many small files: find, grep and git status over them, untar, rm -rf."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bench.commands import run
from bench.datasets import GIT, add_git, small_tree
from bench.harness import Harness, seconds_of
from bench.peers import Bindfs, Btrfs, Dedupfs, FuseOverlay, Native, Overlay, S3ql, Xfs
from bench.sessions import Step, Visit, cold, sessions, warm

FILES = 12_000
READING_SECONDS = 140
WRITING_SECONDS = 75
_FOREIGN_INODES = ("-c", "core.checkStat=minimal", "-c", "core.trustctime=false")
"""What lets git trust its index on a read-only mount, where it cannot write a new one."""


def measure(harness: Harness) -> None:
    with harness.borrowed("trees") as place:
        tree = small_tree(place / "tree", harness.scale.count(FILES))
        archive = place / "tree.tar"
        run("tar", "-C", tree, "-cf", archive, ".")
        count = sum(path.is_file() for path in tree.rglob("*"))
        add_git(tree)
        steps = [
            Step("find-cold", cold(_find)),
            Step("find-warm", warm(_find)),
            Step("grep-cold", cold(_grep)),
            Step("grep-warm", warm(_grep)),
            Step("git-cold", _first_git_status),
            Step("git-warm", warm(_git_status)),
        ]
        note = f"{count} files"
        sessions(harness, tree, steps, seconds=READING_SECONDS, notes=note)
        _write(harness, place, archive, count)


def _write(harness: Harness, place: Path, archive: Path, count: int) -> None:
    """Unpack over nearly nothing: what is there already is not the question."""
    few = small_tree(place / "few", 10)
    steps = [
        Step("untar", partial(_untar, archive, count), writes=True),
        Step("remove", partial(_remove, count), writes=True),
    ]
    kinds = (Native, Dedupfs, Overlay, FuseOverlay, Bindfs, Xfs, Btrfs, S3ql)
    note = f"{count} files"
    sessions(harness, few, steps, seconds=WRITING_SECONDS, notes=note, kinds=kinds)


def _find(visit: Visit) -> float:
    return seconds_of(lambda: run("find", visit.top, "-size", "+1000000k"))


def _grep(visit: Visit) -> float:
    """No file has these words, so that all of all of them is read."""
    return seconds_of(lambda: run("grep", "-rF", "Here Is No Such Line", visit.top, accept=(1,)))


def _git_status(visit: Visit) -> float:
    options = () if visit.peer.writable else ("--no-optional-locks", *_FOREIGN_INODES)
    return seconds_of(lambda: run(*GIT, *options, "-C", visit.top, "status", "--short"))


def _first_git_status(visit: Visit) -> float:
    """Let git take note of the inodes as they are here first: that is no part of the question."""
    _git_status(visit)
    return cold(_git_status)(visit)


def _untar(archive: Path, count: int, visit: Visit) -> float:
    target = visit.top / "untarred"
    target.mkdir()
    return count / seconds_of(lambda: run("tar", "-C", target, "-xf", archive))


def _remove(count: int, visit: Visit) -> float:
    return count / seconds_of(lambda: run("rm", "-rf", visit.top / "untarred"))
