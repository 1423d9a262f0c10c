"""Logs for programs: each record with its fields, and no daemon that waits for who reads them."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.cli import logs, output
from tests.fuse.harness import END_TIMEOUT_S, REPOSITORY

HOSTILE = "a b\nPRIORITY=0\n=\udcff\x1b"


def record(text: str, *args: object, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("dedupfs.x", level, "/x.py", 7, text, args, None, "f")


def decode(message: bytes) -> dict[str, str]:
    """Read the native protocol as journald does."""
    fields = {}
    while message:
        name, end, rest = message.partition(b"\n")
        if b"=" in name:
            key, _, value = name.partition(b"=")
        else:
            (length,) = struct.unpack("<Q", rest[:8])
            key, value, rest = name, rest[8 : 8 + length], rest[9 + length :]
        assert end
        assert key.decode() not in fields
        fields[key.decode()] = value.decode(errors="surrogateescape")
        message = rest
    return fields


@pytest.mark.parametrize(
    ("text", "args", "fields"),
    [
        ("mounted store=%s mountpoint=%s", ("/a b", "/m"), {"store": "/a b", "mountpoint": "/m"}),
        ("failed op=%s errno=%d: %s", ("read", 5, "x=y"), {"op": "read", "errno": 5}),
        ("100%% of %d as size=%.1f of=%08x", (1, 2.5, 3), {"size": 2.5, "of": 3}),
        ("%-5s a=%r", ("x", None), {"a": None}),
        ("nothing a=1", (), {}),
        ("too few a=%s b=%s", ("1",), {"a": "1"}),
    ],
)
def test_fields_are_what_a_text_names(
    text: str, args: tuple[object, ...], fields: dict[str, object]
) -> None:
    assert logs.fields_of(record(text, *args)) == fields


def test_a_line_of_json_holds_anything() -> None:
    line = logs.JsonFormatter().format(record("gone path=%s message=%s n=%d", HOSTILE, "no", 3))
    assert "\n" not in line
    document = json.loads(line)
    assert document["path"] == HOSTILE
    assert document["message"] == f"gone path={HOSTILE} message=no n=3"
    assert (document["n"], document["level"], document["logger"]) == (3, "INFO", "dedupfs.x")


def failed(text: str, *args: object) -> logging.LogRecord:
    """Return a record with a traceback that speaks of a hostile name."""
    try:
        raise ValueError(f"{HOSTILE}\nERROR dedupfs.x: forged\r\x1b[2J")
    except ValueError:
        exception = sys.exc_info()
    return logging.LogRecord("dedupfs.x", logging.ERROR, "/x.py", 7, text, args, exception, "f")


def test_a_traceback_stays_in_its_record() -> None:
    formatted = output.LineFormatter("%(levelname)s %(name)s: %(message)s").format(failed("lost"))
    first, *more = formatted.split("\n")
    assert first == "ERROR dedupfs.x: lost"
    assert more
    assert all(line.startswith("  ") and line.isprintable() for line in more), more
    line = logs.JsonFormatter().format(failed("lost ratio=%f", float("nan")))
    assert "\n" not in line
    document = json.loads(line, parse_constant=pytest.fail)
    assert "forged" in document["traceback"]
    assert document["ratio"] == "nan"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(os.fspath(tmp_path / "journal"))
        listener.settimeout(END_TIMEOUT_S)
        yield listener


def test_the_journal_gets_each_field_whatever_is_in_it(
    journal: socket.socket, tmp_path: Path
) -> None:
    handler = logs.JournalHandler(tmp_path / "journal", logging.NullHandler())
    handler.handle(record("gone path=%s code=%d", HOSTILE, 5, level=logging.ERROR))
    fields = decode(journal.recv(1 << 20))
    assert fields["DEDUPFS_PATH"] == HOSTILE
    assert fields["DEDUPFS_CODE"] == "5"
    assert fields["PRIORITY"] == "3"
    assert fields["MESSAGE"] == f"gone path={HOSTILE} code=5"
    assert fields["SYSLOG_IDENTIFIER"] == "dedupfs"


def test_a_long_record_reaches_the_journal_as_a_sealed_file(
    journal: socket.socket, tmp_path: Path
) -> None:
    handler = logs.JournalHandler(tmp_path / "journal", logging.NullHandler())
    handler.handle(record("long a=%s b=%s", "x\n" * 250_000, "y" * 5_000_000))
    data, (memory,), _flags, _address = socket.recv_fds(journal, 1, 1)
    assert data == b""
    with open(memory, "rb") as file:
        assert fcntl.fcntl(memory, fcntl.F_GET_SEALS) == 15  # all: or journald takes it from few
        file.seek(0)
        fields = decode(file.read())
    assert fields["DEDUPFS_A"] == "x\n" * 250_000
    assert fields["DEDUPFS_B"] == "y" * (1 << 20)
    assert fields["PRIORITY"] == "6"


def test_a_journal_that_is_full_or_gone_holds_nobody_up(
    journal: socket.socket, tmp_path: Path
) -> None:
    otherwise: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            otherwise.append(record)

    handler = logs.JournalHandler(tmp_path / "journal", Keep())
    for _ in range(5000):  # far more than a socket's queue takes
        handler.handle(record("x"))
        if otherwise:
            break
    assert otherwise
    logs.JournalHandler(tmp_path / "nobody", Keep()).handle(record("y"))
    assert otherwise[-1].msg == "y"


@pytest.mark.fuse
@pytest.mark.unmeasured
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_mount_logs_as_it_is_told(tmp_path: Path, log_format: str) -> None:
    pytest.importorskip("pyfuse3")
    store, path = tmp_path / "store", tmp_path / "mnt"
    path.mkdir()
    words = ["mount", "--foreground", "--log-format", log_format, str(store), str(path)]
    daemon = subprocess.Popen(
        [sys.executable, "-m", "dedupfs", *words], stderr=subprocess.PIPE, cwd=REPOSITORY
    )
    assert daemon.stderr is not None
    lines = []
    for line in daemon.stderr:
        lines.append(line)
        if b"mounted" in line:
            break
    daemon.send_signal(signal.SIGTERM)
    with daemon.stderr:  # not by ``communicate``, which does not see what was read ahead
        lines += daemon.stderr.read().splitlines()
    assert daemon.wait(END_TIMEOUT_S) == 0
    if log_format == "text":
        assert any(f"mountpoint={path}".encode() in line for line in lines)
        return
    documents = [json.loads(line) for line in lines]
    (mounted,) = [found for found in documents if found["message"].startswith("mounted ")]
    assert (mounted["store"], mounted["mountpoint"]) == (str(store), str(path))
    command = [sys.executable, "-m", "dedupfs", "check", str(store)]
    subprocess.run(command, check=True, cwd=REPOSITORY, timeout=END_TIMEOUT_S)
