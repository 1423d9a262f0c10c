"""A view is deleted once, though two processes begin it at once, and while its owner has it.

Method: this process holds the index's write lock until each of two others has looked at the view
and waits to change the index; then both go on.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from dedupfs.maintenance.check import check
from dedupfs.namespace.view import View
from dedupfs.namespace.views import GONE_NAME, find_view, view_directory, view_owner
from dedupfs.store import Store

LIMIT_S = 60
PROGRAM = """
import sys
from pathlib import Path
from dedupfs.namespace.views import delete_view
from dedupfs.store import Store
with Store.open(Path(sys.argv[1])) as store:
    print("open", flush=True)
    sys.stdin.readline()
    delete_view(store, sys.argv[2])
"""


def deleter(path: Path, name: str) -> subprocess.Popen[str]:
    """Start a process that has the store open and deletes the view when it is told to."""
    command = [sys.executable, "-c", PROGRAM, str(path), name]
    one = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert one.stdout is not None
    assert one.stdout.readline() == "open\n"
    return one


def test_a_view_that_two_processes_delete_is_given_up_once(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.create(path) as store:
        view = View.open_ephemeral(store)
        name = view.name
        view._opened.release()  # as its owner's death does
        assert find_view(store, name) is not None
        gone = view_directory(path, name) / GONE_NAME
        deleting = [deleter(path, name) for _ in range(2)]
        with store.transaction():
            for one in deleting:
                assert one.stdin is not None
                one.stdin.write("go on\n")
                one.stdin.close()
                until_s = time.monotonic() + LIMIT_S
                while not gone.exists():  # it has found the row, and nothing can change that now
                    assert time.monotonic() < until_s
                    assert one.poll() is None
                gone.unlink()
        assert [one.wait(LIMIT_S) for one in deleting] == [0, 0]
        for one in deleting:
            assert one.stdout is not None
            one.stdout.close()
        assert find_view(store, name) is None
        assert check(store).ok


CLOSER = """
import sys
from pathlib import Path
from dedupfs.namespace.view import View
from dedupfs.store import Store
with Store.open(Path(sys.argv[1])) as store:
    view = View.open_ephemeral(store)
    print(view.name, flush=True)
    sys.stdin.readline()
    view.close()
"""


def test_an_ephemeral_view_is_its_owners_until_it_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.create(path) as store:
        command = [sys.executable, "-c", CLOSER, str(path)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as closing:
            assert closing.stdin is not None
            assert closing.stdout is not None
            name = closing.stdout.readline().strip()
            with store.transaction():
                closing.stdin.close()
                until_s = time.monotonic() + LIMIT_S
                while not (view_directory(path, name) / GONE_NAME).exists():
                    assert time.monotonic() < until_s
                    assert closing.poll() is None
                owner = view_owner(store, name)  # nobody else may take it for a dead one's
                assert owner is not None
                assert owner.pid == closing.pid
            assert closing.wait(LIMIT_S) == 0
        assert find_view(store, name) is None
        assert not view_directory(path, name).exists()
        assert check(store).ok
