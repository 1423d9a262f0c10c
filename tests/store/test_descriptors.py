"""A process that has no descriptors left is told so when it opens a store, and loses none by that.

Method: a process of its own opens a store with a limit of open files that is higher by one each
time, until the store opens.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from dedupfs.store import Store

OPENING = """
import json, os, resource, sys
from pathlib import Path
from dedupfs.errors import StoreError
from dedupfs.store import Store

path = Path(sys.argv[1])
Store.open(path).close()  # what is imported at first use is imported
before = sorted(os.listdir("/proc/self/fd"))
refused = 0
_soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for spare in range(50):
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) - 1 + spare, hard))
    try:
        Store.open(path).close()
        break
    except StoreError:
        refused += 1
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
Store.open(path).close()
print(json.dumps([refused, before, sorted(os.listdir("/proc/self/fd"))]))
"""


def test_without_descriptors_a_store_does_not_open_and_keeps_none(tmp_path: Path) -> None:
    Store.create(tmp_path / "store").close()
    command = [sys.executable, "-c", OPENING, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    refused, before, after = json.loads(done.stdout)
    assert refused > 3  # the store's own file, LMDB's two, and two for turns
    assert before == after
