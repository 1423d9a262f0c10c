"""SQLite keeps its promises on a mount: what COMMIT returned for is there, and nothing is torn.

Method: processes commit numbered transactions and say so; they, or the daemon below them, are
killed in the middle. PRAGMA integrity_check and the count of each transaction's rows judge.
"""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import Scale
from tests.fuse.harness import read_until
from tests.programs.place import Place, python, run, start_python

pytestmark = [pytest.mark.fuse, pytest.mark.unmeasured]

ROWS = 3
WRITER = """
import random, sqlite3, sys
path, mode, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
source = random.Random(seed)
base = sqlite3.connect(path, isolation_level=None, timeout=60)
base.execute(f"PRAGMA journal_mode={mode}")
base.execute("PRAGMA synchronous=FULL")
base.execute("PRAGMA cache_size=20")  # so that pages are spilled before the commit
base.execute("CREATE TABLE IF NOT EXISTS t (n, part, filler BLOB, PRIMARY KEY (n, part))")
base.execute("CREATE INDEX IF NOT EXISTS i ON t (filler)")
(number,) = base.execute("SELECT coalesce(max(n), -1) + 1 FROM t").fetchone()
while True:
    base.execute("BEGIN IMMEDIATE")
    for part in range(3):
        filler = source.randbytes(source.randrange(20_000))
        base.execute("INSERT INTO t VALUES (?, ?, ?)", (number, part, filler))
    base.execute("UPDATE t SET filler = ? WHERE n = ?", (b"", source.randrange(number + 1)))
    base.execute("COMMIT")
    print(number, flush=True)
    number += 1
"""
JOURNAL_MODES = [
    "delete",
    "wal",
    *(pytest.param(mode, marks=pytest.mark.long) for mode in ("truncate", "persist")),
]


def expect_whole(path: Path, committed: int) -> None:
    """Transactions up to ``committed`` are there, perhaps one more, and each as a whole."""
    with closing(sqlite3.connect(path, timeout=60)) as base:
        assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        counts = base.execute("SELECT n, count(*) FROM t GROUP BY n ORDER BY n").fetchall()
    assert counts == [(number, ROWS) for number in range(len(counts))]
    assert committed + 1 <= len(counts) <= committed + 2


@pytest.mark.parametrize("victim", ["writer", "daemon"])
@pytest.mark.parametrize("mode", JOURNAL_MODES)
def test_what_was_committed_survives_the_death_of(
    victim: str, mode: str, place: Place, scale: Scale
) -> None:
    source = random.Random(1)
    path = place.mount / "base"
    for round_number in range(scale(2, 10)):
        writer = start_python(WRITER, path, mode, str(round_number))
        assert writer.stdout is not None
        with writer, writer.stdout:
            enough = source.randrange(1, 30)
            said = read_until(writer.stdout, lambda said: said.count(b"\n") >= enough)  # noqa: B023
            if victim == "writer":
                writer.kill()
            else:
                place.kill_daemon()
            said += writer.stdout.read()
            assert writer.wait() != 0
        if victim == "daemon":
            place.mount_again()
        expect_whole(path, int(said.split(b"\n")[-2]))


WORK = """
import random, sqlite3, sys
path, mode = sys.argv[1:]
source = random.Random(7)
base = sqlite3.connect(path)
base.execute(f"PRAGMA journal_mode={mode}")
base.execute("PRAGMA auto_vacuum=INCREMENTAL")
base.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT, c BLOB)")
for number in range(3000):
    base.execute("INSERT INTO t (b, c) VALUES (?, ?)",
                 (str(source.random()), source.randbytes(source.randrange(900))))
base.commit()
base.execute("CREATE INDEX i ON t (b)")
base.execute("DELETE FROM t WHERE a % 3 = 0")
base.commit()
base.execute("PRAGMA incremental_vacuum")
base.execute("UPDATE t SET c = zeroblob(5000) WHERE a % 7 = 0")
base.rollback()
base.execute("UPDATE t SET b = b || 'x' WHERE a % 5 = 0")
base.commit()
base.execute("VACUUM")
base.close()
"""


@pytest.mark.program("sqlite3")
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_database_is_the_same_file_as_natively(mode: str, place: Place) -> None:
    for top in place.both():
        python(WORK, top / "base", mode)
    native, mount = place.both()
    assert (mount / "base").read_bytes() == (native / "base").read_bytes()
    dump = run("sqlite3", native / "base", ".dump")
    assert len(dump) > 1_000_000
    assert run("sqlite3", mount / "base", ".dump") == dump
    place.remount()
    assert run("sqlite3", mount / "base", ".dump") == dump
    assert run("sqlite3", mount / "base", "PRAGMA integrity_check") == "ok\n"


COUNTER = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=120)
for _ in range(int(sys.argv[2])):
    base.execute("BEGIN IMMEDIATE")
    (count,) = base.execute("SELECT count FROM t").fetchone()
    base.execute("UPDATE t SET count = ?", (count + 1,))
    base.execute("COMMIT")
"""


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_processes_that_count_together_lose_no_count(mode: str, place: Place, scale: Scale) -> None:
    path, each = place.mount / "base", scale(30, 150)
    with closing(sqlite3.connect(path)) as base:
        base.execute(f"PRAGMA journal_mode={mode}")
        base.execute("CREATE TABLE t (count)")
        base.execute("INSERT INTO t VALUES (0)")
        base.commit()
    counters = [start_python(COUNTER, path, str(each)) for _ in range(3)]
    for counter in counters:
        with counter:
            assert counter.wait(240) == 0
    place.remount()
    with closing(sqlite3.connect(path)) as base:
        assert base.execute("SELECT count FROM t").fetchall() == [(3 * each,)]
        assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
