"""PostgreSQL keeps a database on a mount, through the death of its server and of the daemon.

Method: pgbench moves amounts between tables whose sums must agree at every moment; the server or
the daemon is killed in the middle. After recovery the sums agree, every transaction that another
session had seen is there, and pg_checksums and pg_amcheck find every page right.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.fuse.harness import Daemons, eventually
from tests.programs.place import Place, run

pytestmark = [
    pytest.mark.unmeasured,
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.program("pgbench"),
    pytest.mark.timeout(1800),
]

USER = "postgres"
AS_USER: Any = {"user": USER, "group": USER, "extra_groups": [], "cwd": "/"}


@cache
def pg(name: str) -> str:
    """Find a program of PostgreSQL: Debian keeps the server's off PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(places[-1]) if places else (shutil.which(name) or name)


@pytest.fixture
def open_place() -> Iterator[Place]:
    """A place that the database's user may enter; those of pytest are its owner's alone."""
    with tempfile.TemporaryDirectory(prefix="dedupfs-pg-") as name:
        directory = Path(name).resolve()
        directory.chmod(0o755)
        daemons = Daemons(directory)
        try:
            place = Place(daemons, allow_other=True)
            yield place
            place.end()
        finally:
            daemons.end_all()
        assert daemons.complaints() == []


def lives(number: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except OSError:
        return False


@dataclass
class Server:
    """A PostgreSQL server with its data on the mount and its sockets outside."""

    place: Place
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        user = pwd.getpwnam(USER)
        self.sockets = self.place.daemons.directory / "sockets"
        for directory in (self.sockets, self.place.mount / "pg"):
            directory.mkdir()
            os.chown(directory, user.pw_uid, user.pw_gid)
        self.data = self.place.mount / "pg" / "data"
        run(pg("initdb"), "-D", self.data, "--data-checksums", "-E", "UTF8", user=USER)

    def start(self) -> None:
        """Start the server as a child of ours: its lock file counts while its number is taken."""
        with (self.sockets / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [pg("postgres"), "-D", self.data, "-k", self.sockets, "-c", "listen_addresses="],
                **AS_USER,
                stdout=log,
                stderr=log,
            )
        asks: list[str | Path] = [
            pg("psql"),
            "-h",
            self.sockets,
            "-X",
            "-c",
            "SELECT 1",
            "postgres",
        ]
        ready = eventually(
            lambda: (
                self.process.poll() is not None
                or not subprocess.run(asks, **AS_USER, capture_output=True, check=False).returncode
            )
        )
        assert ready, f"no answer: {(self.sockets / 'log').read_text()[-3000:]}"
        assert self.process.poll() is None, (self.sockets / "log").read_text()[-3000:]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 0

    def client(self, program: str, *arguments: str) -> str:
        return run(pg(program), "-h", self.sockets, *arguments, user=USER)

    def ask(self, question: str) -> str:
        return self.client("psql", "-X", "-A", "-t", "-c", question, "postgres").strip()

    def bench(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [pg("pgbench"), "-h", self.sockets, "-n", "-c", "4", "-T", "600", "postgres"],
            **AS_USER,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def children(self) -> list[int]:
        """The processes whose parent is the server: their command lines name nothing."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"PPid:\t{self.process.pid}\n" in (directory / "status").read_text():
                    found.append(int(directory.name))
        return found

    def kill(self) -> None:
        """SIGKILL all processes of the server at once, and wait until none of them is left."""
        self.process.send_signal(signal.SIGSTOP)  # so that it starts no more of them
        doomed = self.children()
        self.process.kill()
        for number in doomed:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait(60)
        assert eventually(lambda: not any(lives(number) for number in doomed))

    def expect_whole(self, seen: int) -> None:
        sums = self.ask(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts),"
            " (SELECT sum(bbalance) FROM pgbench_branches),"
            " (SELECT sum(tbalance) FROM pgbench_tellers),"
            " (SELECT sum(delta) FROM pgbench_history)"
        )
        assert len(set(sums.split("|"))) == 1
        assert int(self.ask("SELECT count(*) FROM pgbench_history")) >= seen
        self.client("pg_amcheck", "--heapallindexed", "--install-missing", "postgres")


@pytest.fixture
def server(open_place: Place) -> Iterator[Server]:
    started = Server(open_place)
    started.start()
    try:
        yield started
    finally:
        if started.process.poll() is None:  # the test failed
            started.kill()


@pytest.mark.parametrize("victim", ["server", "daemon"])
def test_a_database_survives_the_death_of(victim: str, server: Server) -> None:
    place = server.place
    server.client("pgbench", "-i", "-s", "5", "-q", "postgres")
    for _ in range(3):
        before = int(server.ask("SELECT count(*) FROM pgbench_history"))
        with server.bench() as bench:
            assert eventually(
                lambda: int(server.ask("SELECT count(*) FROM pgbench_history")) > before + 500  # noqa: B023
            )
            seen = int(server.ask("SELECT count(*) FROM pgbench_history"))
            if victim == "daemon":
                place.kill_daemon()
            server.kill()
            assert bench.wait(60) != 0
        if victim == "daemon":
            place.mount_again()
        server.start()
        server.expect_whole(seen)
    server.stop()
    run(pg("pg_checksums"), "--check", "-D", server.data, user=USER)
    place.remount()
    run(pg("pg_checksums"), "--check", "-D", server.data, user=USER)
    server.start()
    server.expect_whole(seen)
    server.client("vacuumdb", "--full", "--analyze", "postgres")
    server.client("reindexdb", "postgres")
    server.expect_whole(seen)
    server.stop()
