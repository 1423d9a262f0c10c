"""A store is its owner's alone, whatever umask made it and whoever opens it.

Method: commands as processes of their own, under the worst umasks and as other users.
"""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from dedupfs.errors import UsageError
from dedupfs.maintenance.check import check
from dedupfs.store import Store
from tests.cli.conftest import Run
from tests.fuse.harness import REPOSITORY, Daemons, Mounted, eventually, run_code

pytestmark = pytest.mark.unmeasured

NOBODY = 65534
OTHER = 54321


def dedupfs(*arguments: object, umask: int = 0o022) -> None:
    command = [sys.executable, "-m", "dedupfs", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, umask=umask, cwd=REPOSITORY)


def open_to_others(path: Path) -> list[str]:
    """Return what below ``path``, itself included, others have any right to."""
    modes = {}
    for entry in [path, *path.rglob("*")]:
        with suppress(FileNotFoundError):  # a daemon that lives removes files, too
            modes[entry] = entry.lstat().st_mode
    return [f"{entry} {mode:o}" for entry, mode in modes.items() if mode & 0o077]


def kinds_of_files(store: Path) -> set[str]:
    """Return what the names of a store's files begin with."""
    return {path.name.partition(".")[0] for path in store.rglob("*")}


@pytest.mark.parametrize("umask", [0, 0o777], ids=oct)
@pytest.mark.fuse
def test_nothing_of_a_store_is_for_others(tmp_path: Path, daemons: Daemons, umask: int) -> None:
    store, source = tmp_path / "store", tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(random.Random(1).randbytes(9 << 20))
    dedupfs("init", store, umask=umask)
    dedupfs("import", store, source, "s", umask=umask)
    old = os.umask(umask)
    try:
        mounted = daemons.start()
        mounted.path.joinpath("s", "large").open("r+b").close()
        assert eventually(lambda: is_staged(mounted)), "folded before we could look, each time"
        while_it_lives = open_to_others(store)
        names = kinds_of_files(store)
    finally:
        os.umask(old)
    assert while_it_lives == []
    assert {"journal", "view-default", "lock", "data"} <= names
    assert stat.S_IMODE(store.stat().st_mode) == 0o700
    assert mounted.end() == 0
    dedupfs("commit", store, "t", umask=umask)
    dedupfs("gc", store, umask=umask)
    dedupfs("reindex", store, umask=umask)
    assert open_to_others(store) == []
    with Store.open(store) as opened:
        assert check(opened).ok


def is_staged(mounted: Mounted) -> bool:
    """Write a file and say whether its bytes are still in a staging file: a fold, which comes after
    a few seconds, ends that.
    """
    (mounted.path / "f").write_bytes(random.Random(2).randbytes(300_000))
    return "staging" in kinds_of_files(mounted.store)


@pytest.mark.fuse
@pytest.mark.root
def test_a_daemon_of_the_command_line_logs_for_its_owner_alone(tmp_path: Path) -> None:
    store, path = tmp_path / "store", tmp_path / "mnt"
    path.mkdir()
    dedupfs("mount", store, path, umask=0)
    try:
        assert (store / "run" / "view-default.log").exists()
        assert open_to_others(store) == []
    finally:
        dedupfs("umount", path)


@pytest.mark.root
def test_the_owner_can_use_what_he_made_under_the_worst_umask(open_directory: Path) -> None:
    """Root could open anything, so this is an ordinary user."""
    home = open_directory / "umask"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    code = (  # all is imported as root, since an ordinary user may not reach the interpreter
        "import importlib, pkgutil, dedupfs\n"
        "for found in pkgutil.walk_packages(dedupfs.__path__, 'dedupfs.'):\n"
        "    if 'fuse' not in found.name and '__main__' not in found.name:\n"
        "        importlib.import_module(found.name)\n"
        "from tests.fuse.harness import become\n"
        f"become({NOBODY}); os.chdir({str(home)!r}); os.mkdir('d'); open('d/f', 'w').close()\n"
        "os.umask(0o777)\n"
        "from dedupfs.cli import main\n"
        "codes = [main(['init', 'store']), main(['import', 'store', 'd', 's']),\n"
        "         main(['check', 'store']), main(['export', 'store', 's', 'out'])]\n"
        "print(codes)"
    )
    done = run_code(code)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0]", done.stderr
    assert open_to_others(home / "store") == []


@pytest.mark.root
def test_a_store_of_another_user_is_refused(tmp_path: Path, run: Run) -> None:
    store = tmp_path / "store"
    run("init", store)
    before = sorted(store.rglob("*"))
    os.chown(store, OTHER, OTHER)
    repair = ["check", "--repair", store]
    for arguments in (["ls", store], ["gc", store], ["reindex", store], repair):
        ran = run(*arguments, code=2)
        assert f"belongs to user {OTHER}" in ran.err
        assert "chown" in ran.err
    with pytest.raises(UsageError):
        Store.open(store)
    assert sorted(store.rglob("*")) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    os.chown(empty, OTHER, OTHER)
    run("init", empty, code=2)
    assert os.listdir(empty) == []
    os.chown(store, 0, 0)
    run("check", store)


@pytest.mark.allow_log("others can write to")
def test_a_store_that_others_can_write_to_is_warned_of(tmp_path: Path) -> None:
    store = tmp_path / "store"
    dedupfs("init", store)
    store.chmod(0o770)
    command = [sys.executable, "-m", "dedupfs", "check", str(store)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    (line,) = done.stderr.splitlines()
    assert "others can write to" in line
    store.chmod(0o700)
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stderr == ""


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.program("setpriv")
@pytest.mark.parametrize("shut", ["home", "home/store"])
def test_what_root_may_not_look_into_is_no_bug(tmp_path: Path, run: Run, shut: str) -> None:
    """As in the sandbox of a unit: without the capability to open what is another user's."""
    store, path, source = tmp_path / "home/store", tmp_path / "mnt", tmp_path / "source"
    for directory in (store.parent, path, source):
        directory.mkdir()
    run("init", store)
    run("import", store, source, "one")
    os.chown(store, OTHER, OTHER)
    store.chmod(0o755)
    (tmp_path / shut).chmod(0o700)
    os.chown(tmp_path / shut, OTHER, OTHER)
    commands: list[list[object]] = [
        ["mount", store, path],
        ["run", store, "one", "--", "true"],
        ["check", "--repair", store],
        ["commit", store, "two"],
        ["status", store],
        ["top", "--once", store],
        ["gc", store],
    ]
    arguments = [[str(word) for word in command] for command in commands]
    code = f"from dedupfs.cli import main; print([main(words) for words in {arguments!r}])"
    without = "-dac_override,-dac_read_search"
    as_in_a_unit = ["setpriv", f"--inh-caps={without}", f"--bounding-set={without}"]
    done = subprocess.run(
        [*as_in_a_unit, sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    lines = done.stderr.splitlines()
    assert len(lines) == len(commands), done.stderr
    assert not [line for line in lines if " bug" in line]
    codes = [3 if " look " in line or "cannot open " in line else 2 for line in lines]
    assert done.stdout.splitlines()[-1] == str(codes), done.stderr
    told = [line for line in lines if f"belongs to user {OTHER}" in line]
    assert len(told) == (0 if shut == "home" else 4)
    os.chown(store, 0, 0)
    store.parent.chmod(0o755)
    os.chown(store.parent, 0, 0)
    run("check", store)
