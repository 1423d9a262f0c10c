"""A child that is forked while this process holds a lock of a store has no part of it.

Method: commands run in this process, and whenever they lock a file, a child is forked right there;
it looks whether it has that descriptor.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dedupfs.cli import main
from tests.maintenance.samples import make_directory, noise

INDEX = "data.mdb"
"""Of whose lock each process has a descriptor for good; whoever unlocks it unlocks it for all."""
DEAD_IMPORT, DEAD_OWNER = "import-70.new", f"{'7' * 16}.lock"
_locked: set[str] = set()
_kept: list[str] = []
_is_watching = False


def _fork_at_a_lock(event: str, arguments: tuple[object, ...]) -> None:
    if not _is_watching or event != "fcntl.flock":
        return
    path = _path_of(arguments[0])
    if Path(path).name == INDEX:
        return
    _locked.add(path)
    pid = os.fork()
    if pid == 0:
        os._exit(_path_of(arguments[0]) == path)
    if os.waitpid(pid, 0)[1]:
        _kept.append(path)


def _path_of(descriptor: object) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:  # it is closed
        return ""


@contextmanager
def forking_at_locks() -> Iterator[None]:
    """Have children forked; a hook can never be taken away, so it is told when to look."""
    global _is_watching  # noqa: PLW0603
    _locked.clear()
    _kept.clear()
    sys.addaudithook(_fork_at_a_lock)
    _is_watching = True
    try:
        yield
    finally:
        _is_watching = False


def leave_what_dead_processes_leave(store: Path) -> None:
    """Leave an unfinished file and an owner's lock."""
    (store / "run" / DEAD_IMPORT).touch()
    (store / "run" / DEAD_OWNER).touch()


def test_a_forked_child_has_no_lock_that_a_command_just_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, source, target = tmp_path / "store", tmp_path / "source", tmp_path / "target"
    make_directory(source)
    (source / "verbatim").write_bytes(noise("verbatim", 9 << 20))
    pieces = source / "verbatim"
    (source / "pieces").write_bytes(b"new" + noise("new", 1 << 20) + pieces.read_bytes())
    adopted = tmp_path / "adopted"
    adopted.mkdir()
    (adopted / "file").write_bytes(noise("adopted", 9 << 20))
    commands = [
        f"init {store} --chunk-size 64KiB",
        f"import {store} {source} one",
        f"import {store} {source} two",
        f"import --adopt {store} {adopted} adopted",
        f"checkout {store} one {target} --link hardlink",
        f"rm {store} one",
        f"gc {store} --dry-run",
        f"gc {store} --compact-below 90",
        f"checkout rm {target}",
        f"rm {store} two",
        f"gc {store}",
        f"reindex {store}",
        f"check --repair {store}",
    ]
    with forking_at_locks():
        for command in commands:
            if store.exists():
                leave_what_dead_processes_leave(store)
            assert main(command.split()) == 0, (command, capsys.readouterr())
    assert _kept == []
    names = [Path(path).name for path in _locked]
    ours = (".pack", "punch.lock", "reindex.lock", "1.lock", "import-", "import-whole-")
    for wanted in (*ours, DEAD_IMPORT, DEAD_OWNER):
        assert any(wanted in name for name in names), (wanted, names)
