"""The detour of an answer to OPENDIR, with socket pairs in place of libfuse and the kernel."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from dedupfs.fuse.detour import CACHE_DIR, KEEP_CACHE, Detour, keeping_listing

OPENED = struct.pack("<IiQQII", 32, 0, 7, 99, 0, 0)
REFUSED = struct.pack("<IiQ", 16, -2, 7)


@dataclass
class Line:
    """``session_fd`` is libfuse's, ``kernel`` what it is connected to."""

    session_fd: int
    kernel: socket.socket
    detour: Detour


@pytest.fixture
def line() -> Iterator[Line]:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.setblocking(False)
    session_fd = ours.detach()
    found = Line(session_fd, kernel, Detour(session_fd))
    yield found
    found.detour.close()
    os.close(session_fd)
    kernel.close()


def test_only_an_answer_that_opened_gets_the_flags() -> None:
    flags = struct.unpack("<IiQQII", keeping_listing(OPENED))[4]
    assert flags == CACHE_DIR | KEEP_CACHE
    assert keeping_listing(OPENED)[:24] == OPENED[:24]
    for other in (REFUSED, b"", OPENED + b"x"):
        assert keeping_listing(other) == other


@pytest.mark.parametrize("answer", [OPENED, REFUSED])
def test_one_answer_takes_the_detour(line: Line, answer: bytes) -> None:
    line.detour.begin()
    os.write(line.session_fd, answer)
    with pytest.raises(BlockingIOError):
        line.kernel.recv(100)
    line.detour.finish()
    assert line.kernel.recv(100) == keeping_listing(answer)
    assert not line.detour.under_way
    os.write(line.session_fd, OPENED)
    assert line.kernel.recv(100) == OPENED


def test_a_detour_without_an_answer_leaves_the_device_as_it_was(line: Line) -> None:
    line.detour.begin()
    line.detour.finish()
    os.write(line.session_fd, OPENED)
    assert line.kernel.recv(100) == OPENED


def test_an_answer_that_nobody_waits_for_is_given_up(line: Line) -> None:
    line.detour.begin()
    os.write(line.session_fd, OPENED)
    line.kernel.close()
    line.detour.finish()
    assert not line.detour.under_way


def test_the_end_of_a_session_waits_for_no_answer(line: Line) -> None:
    line.detour.begin()
    os.write(line.session_fd, OPENED)
    line.detour.close()
    assert line.kernel.recv(100) == keeping_listing(OPENED)
    line.detour = Detour(line.session_fd)
