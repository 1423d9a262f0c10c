"""A view is deleted once, though two processes do it at once: who closes an ephemeral one, and gc.

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
from dedupfs.namespace.views import GONE_NAME, find_view, view_directory
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
        view._opened.release()  # as its owner's last act, or its death, does
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
