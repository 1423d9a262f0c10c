"""A fork comes at any moment of the other threads: while they import, or open a lock."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dedupfs.api import opened
from dedupfs.store import RealDisk
from dedupfs.store.disk import File
from dedupfs.store.layout import Layout
from dedupfs.store.owner import Owner, exclusive, is_dead
from tests.api.test_processes import forked_until_told

LIMIT_S = 60

FORKS_WHILE_A_THREAD_WORKS = f"""
import os, signal, sys, threading
import dedupfs

def work(name):
    store.import_tree(sys.argv[2], name)
    store.gc()
    assert store[name].read_bytes("file") == b"1"
    store[name].remove()

def work_on():
    turn = 0
    while not done.is_set():
        turn += 1
        work(f"mine-{{turn}}")

with dedupfs.Store.create(sys.argv[1]) as store:
    done = threading.Event()
    thread = threading.Thread(target=work_on)
    thread.start()
    try:
        for turn in range(20):
            pid = os.fork()
            if pid == 0:
                signal.alarm({LIMIT_S})
                work(f"child-{{turn}}")
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0, "a child hung (14), or failed"
    finally:
        done.set()
        thread.join()
    assert store.check() == []
"""


@pytest.mark.unmeasured
def test_children_that_are_forked_while_a_thread_imports_and_collects_do_so_too(
    tmp_path: Path,
) -> None:
    """It is the first work of that thread, so it is loading modules, too."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"1")
    command = [sys.executable, "-W", "ignore", "-c", FORKS_WHILE_A_THREAD_WORKS]
    done = subprocess.run(
        [*command, str(tmp_path / "store"), str(source)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


def test_all_that_methods_import_is_there_before_a_fork() -> None:
    late = set()
    for path in Path(opened.__file__).parent.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                late |= {
                    str(node.module)
                    for node in ast.walk(function)
                    if isinstance(node, ast.ImportFrom)
                }
    assert late == set(opened._IMPORTED_LATE)


class SlowToOpen(RealDisk):
    """Has opened a file for a while before it tells: until ``told``, or until it had time."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.told = threading.Event()

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> File:
        file = super().open(path, write=write, create=create)
        self.is_open.set()
        self.told.wait(0.2)  # a fork that waits for us, as it should, tells nothing meanwhile
        return file


def test_a_child_has_no_lock_that_a_thread_was_just_opening(tmp_path: Path) -> None:
    layout, disk = Layout(tmp_path), SlowToOpen()
    layout.run.mkdir()
    owner = Owner(layout, RealDisk())
    owner.claim()

    def lock() -> None:
        with exclusive(layout, disk, "one"):
            pass

    thread = threading.Thread(target=lock)
    thread.start()
    assert disk.is_open.wait(LIMIT_S)
    pid, end = forked_until_told()
    disk.told.set()
    thread.join(LIMIT_S)
    with exclusive(layout, RealDisk(), "one", wait=False) as mine:
        assert mine
    assert not is_dead(layout, RealDisk(), owner.name)
    owner.abandon()  # as if we had died
    assert is_dead(layout, RealDisk(), owner.name)
    os.close(end)
    assert os.waitpid(pid, 0)[1] == 0
