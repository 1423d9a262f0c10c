"""Running commands: in this process, with what they print, and the store checked at the end."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dedupfs.cli import main, metrics, top, watching
from dedupfs.maintenance.check import check
from dedupfs.namespace import live
from dedupfs.store import Store


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]
LIMIT_S = 60.0


@contextmanager
def answering(
    store: Path, view: str, count: int, answer: Callable[[live.Request], live.Reply]
) -> Iterator[None]:
    """Stand in for the daemon of a view, for ``count`` requests: it only answers."""
    path = store / "run" / f"view-{view}.sock"
    listener = socket.socket(socket.AF_UNIX)
    with live.short_address(path) as address:
        listener.bind(address)
    listener.listen()

    def serve() -> None:
        for _ in range(count):
            connection, _address = listener.accept()
            with connection:
                asked = live.decode_request(connection.makefile("rb").readline())
                connection.sendall(live.encode(answer(asked)) + b"\n")

    server = threading.Thread(target=serve, daemon=True)  # nobody may ask so often
    server.start()
    yield
    server.join()
    listener.close()
    path.unlink()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody called silent who has too little of a busy machine to answer in five seconds."""
    monkeypatch.setattr(watching, "ANSWER_S", LIMIT_S)
    monkeypatch.setattr(metrics, "ANSWER_S", LIMIT_S)
    monkeypatch.setattr(top, "_ANSWER_S", LIMIT_S)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command and return what it did; it must say at most one line when it fails."""

    def run_command(*arguments: object, code: int = 0) -> Ran:
        # It would go on in a fork of this process, and never be heard of through capfd.
        assert "mount" not in arguments[:1], "start mount as a process (see test_mount_cli.py)"
        capfd.readouterr()
        actual = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert actual == code, f"exit code {actual}: {err}"
        return Ran(actual, out, err)

    return run_command


@pytest.fixture
def store_path(tmp_path: Path, run: Run) -> Iterator[Path]:
    path = tmp_path / "store"
    run("init", path, "--chunk-size", "4KiB")
    yield path
    with Store.open(path) as store:
        report = check(store)
    assert report.ok, "\n".join(map(str, report.problems))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with a bit of everything that commands show."""
    directory = tmp_path / "data"
    (directory / "sub").mkdir(parents=True)
    (directory / "a.txt").write_text("hello\n")
    (directory / "sub" / "b.bin").write_bytes(bytes(range(256)) * 400)
    (directory / "pointer").symlink_to("a.txt")
    return directory
