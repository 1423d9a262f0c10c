"""status: who has what mounted, and what to do about what is dead."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dedupfs.cli import status
from dedupfs.cli.watching import Mounted, State, find_mounted
from dedupfs.namespace import live
from tests.cli.conftest import Run
from tests.fuse.harness import REPOSITORY, Daemons

pytest.importorskip("pyfuse3")


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    found = Daemons(tmp_path)
    yield found
    found.end_all()


def look(run: Run, *words: object, code: int = 0) -> Any:
    return run("status", *words, "--json", code=code).json


@pytest.mark.fuse
def test_each_mount_is_told_with_what_it_shows(run: Run, daemons: Daemons) -> None:
    began_ns = time.time_ns()
    first = daemons.start("a")
    (first.path / "x").touch()
    run("commit", first.store, "snap")
    daemons.start("b", view="job", snapshot="snap", allow_other=os.geteuid() == 0)
    daemons.start("c", read_only=True)
    mounts = {Path(row["mountpoint"]).name: row for row in look(run, first.store)}
    assert {name: row["state"] for name, row in mounts.items()} == dict.fromkeys("abc", "live")
    assert mounts["a"]["view"] == "default"
    assert mounts["a"]["snapshot"] is None
    assert mounts["a"]["pid"] == first.process.pid
    assert began_ns <= mounts["a"]["since_ns"] <= time.time_ns()
    assert mounts["a"]["uid"] == os.geteuid()
    assert (mounts["b"]["view"], mounts["b"]["snapshot"]) == ("job", "snap")
    assert mounts["c"]["read_only"] is True
    assert {name: row["allow_other"] for name, row in mounts.items()} == {
        "a": False,
        "b": os.geteuid() == 0,
        "c": False,
    }
    text = run("status", first.store).out
    assert "job of snap" in text
    assert "(read-only)" in text
    command = [sys.executable, "-m", "dedupfs", "status", "--json"]
    # Others' mounts are told as well; some of them may be dead.
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=False, cwd=REPOSITORY, timeout=60)
    everywhere = {row["mountpoint"] for row in json.loads(ran.stdout)}
    assert {row["mountpoint"] for row in mounts.values()} <= everywhere


@pytest.mark.fuse
def test_a_store_is_one_however_it_is_spelled(
    run: Run, daemons: Daemons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = daemons.start("a")
    (tmp_path / "link").symlink_to("store")
    second = daemons.start("b", store="link", view="other")
    monkeypatch.chdir(tmp_path)
    for spelling in (first.store, second.store, "link/", "./store/../link"):
        rows = look(run, spelling)
        assert [(row["mountpoint"], row["state"]) for row in rows] == [
            (str(first.path), "live"),
            (str(second.path), "live"),
        ], spelling
        assert {row["store"] for row in rows} == {str(first.store)}
    assert len(look(run, first.store, second.store)) == 2
    ours = [mounted for mounted in find_mounted(()) if mounted.store == first.store]
    assert [mounted.state for mounted in ours] == [State.LIVE, State.LIVE]


@pytest.mark.fuse
def test_a_dead_mount_is_named_with_what_to_do(run: Run, daemons: Daemons) -> None:
    dead, alive = daemons.start("dead", view="dead"), daemons.start("alive", view="alive")
    dead.kill()
    ran = run("status", dead.store, "--json", code=1)
    states = {Path(row["mountpoint"]).name: row["state"] for row in ran.json}
    assert states == {"dead": "dead", "alive": "live"}
    assert f"dedupfs umount {dead.path}" in ran.err
    run("umount", dead.path)
    (row,) = look(run, dead.store)
    assert row["mountpoint"] == str(alive.path)


@pytest.mark.fuse
@pytest.mark.root
def test_a_bind_mount_is_a_copy_and_not_a_mount_without_a_daemon(
    run: Run, daemons: Daemons, tmp_path: Path
) -> None:
    """Docker's way to share a mount binds it to itself; kubelet's are all over the place."""
    first = daemons.start("b")
    (first.path / "sub").mkdir()
    above, below = tmp_path / "a", tmp_path / "c"
    bound = [(first.path, first.path), (first.path, above), (first.path / "sub", below)]
    above.mkdir()
    below.mkdir()
    for source, target in bound:
        subprocess.run(["mount", "--bind", source, target], check=True, timeout=60)
    try:
        rows = look(run, first.store)
        told = run("metrics", first.store).out if find_spec("prometheus_client") else ""
    finally:
        for _, target in reversed(bound):
            subprocess.run(["umount", target], check=True, timeout=60)
    states = [(row["mountpoint"], row["state"], row["pid"]) for row in rows]
    assert states == [
        (str(above), "copy", first.process.pid),
        (str(first.path), "live", first.process.pid),
        (str(below), "copy", first.process.pid),
    ]
    up = [line for line in told.splitlines() if line.startswith("dedupfs_up{")]
    assert len(up) == bool(told), "Prometheus refuses a page that says a thing twice"
    assert all(line.endswith(" 1.0") for line in up)


def test_what_to_do_about_a_dead_mount_can_be_pasted_whatever_its_name_is() -> None:
    mounted = Mounted(Path("/s"), Path("/m/a; reboot 'x'"), 0, State.DEAD)
    assert shlex.split(mounted.advice.rpartition(": ")[2]) == [
        "dedupfs",
        "umount",
        "/m/a; reboot 'x'",
    ]


@pytest.mark.fuse
def test_a_daemon_that_hangs_is_told_and_nobody_hangs_with_it(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    from dedupfs.cli import watching

    monkeypatch.setattr(watching, "ANSWER_S", 0.2)
    mounted = daemons.start()
    mounted.process.send_signal(signal.SIGSTOP)
    try:
        (row,) = look(run, mounted.store, code=1)
    finally:
        mounted.process.send_signal(signal.SIGCONT)
    assert row["state"] == "silent"
    assert "no answer" in row["advice"]


@pytest.mark.fuse
@pytest.mark.root
def test_a_mount_in_another_namespace_is_elsewhere(run: Run, tmp_path: Path) -> None:
    store, path = tmp_path / "store", tmp_path / "mnt"
    path.mkdir()
    run("init", store)
    command = [sys.executable, "-m", "dedupfs", "mount", "--foreground", str(store), str(path)]
    inside = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", *command],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
    )
    try:
        assert inside.stderr is not None
        for line in inside.stderr:
            if b"mounted" in line:
                break
        (row,) = look(run, store)
        assert (row["state"], row["mountpoint"]) == ("elsewhere", str(path))
        assert (row["user"], row["allow_other"]) == (None, None)
    finally:
        inside.terminate()
        inside.communicate(timeout=60)
    assert inside.returncode == 0
    run("check", store)


def test_the_keys_of_json_are_documented() -> None:
    keys = status._json(Mounted(Path("/s"), Path("/m"), 0, State.DEAD))
    documented = (REPOSITORY / "docs" / "cli.md").read_text()
    table = documented.partition("### status")[2].partition("\n### ")[0]
    assert {key for key in keys if f"`{key}`" not in table} == set()


def test_nothing_is_mounted_and_what_is_no_store_is_refused(run: Run, store_path: Path) -> None:
    assert run("status", store_path).out == "nothing is mounted\n"
    assert look(run, store_path) == []
    run("status", store_path / "nowhere", code=2)


def test_an_older_daemon_that_tells_less_is_shown(run: Run, store_path: Path) -> None:
    """The answer has none of the fields that came after version 0.1."""
    path = store_path / "run" / "view-old.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        with live.short_address(path) as address:
            listener.bind(address)
        listener.listen()
        old = b'{"type":"running","pid":1,"view":"old","mountpoint":"/old","read_only":false}\n'
        reader = os.fork()
        if reader == 0:
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.sendall(old)
            os._exit(0)
        (row,) = look(run, store_path)
        os.waitpid(reader, 0)
    path.unlink()
    assert (row["view"], row["since_ns"], row["state"]) == ("old", None, "elsewhere")
