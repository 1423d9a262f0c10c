"""What Prometheus asks for, and what else may come to a port: the mount goes on.

Method: the server alone, on a socket of its own, with real connections.
"""

from __future__ import annotations

import errno
import logging
import os
import socket

import pytest

pytest.importorskip("pyfuse3")
pytest.importorskip("prometheus_client")
pytest.importorskip("trio")

import trio

from dedupfs.errors import MountError, UsageError
from dedupfs.fuse import scraping

PAGE = b"dedupfs_up 1\n"
LIMIT_S = 60


@pytest.fixture
async def server(nursery: trio.Nursery) -> scraping.MetricsServer:
    listener = scraping.listen("0")
    asked = iter(range(1000))

    def page() -> bytes:
        if next(asked) == 3:
            raise ZeroDivisionError
        return PAGE

    found = scraping.MetricsServer(listener, lambda: page, "text/plain", idle_s_max=LIMIT_S)
    nursery.start_soon(found.run)
    return found


async def say(server: scraping.MetricsServer, request: bytes, *, end: bool = False) -> bytes:
    host, port = scraping.parse_address(scraping.address_of(server.listener))
    said = b""
    with trio.fail_after(LIMIT_S):
        stream = await trio.open_tcp_stream(host, port)
        async with stream:
            try:
                await stream.send_all(request)
                if end:
                    await stream.send_eof()
                async for part in stream:
                    said += part
            except trio.BrokenResourceError:  # closed with bytes of ours unread
                return said
    return said


async def test_a_page_is_served_to_who_asks_for_it(server: scraping.MetricsServer) -> None:
    said = await say(server, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(PAGE)}".encode() in head
    assert body == PAGE
    assert await say(server, b"GET /metrics?a=b HTTP/1.0\r\n\r\n") == said
    assert (await say(server, b"HEAD /metrics HTTP/1.1\r\n\r\n")) == head + b"\r\n\r\n"


@pytest.mark.allow_log("bug in the metrics page")
@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 "),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 "),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"HTTP/1.1 405 "),
        (b"GET /metrics HTTP/1.1\r\n", b""),
        (b"", b""),
        (b"x" * 20_000, b""),
    ],
)
async def test_other_requests_are_refused_and_the_next_one_is_served(
    server: scraping.MetricsServer, request_bytes: bytes, answer: bytes
) -> None:
    said = await say(server, request_bytes, end=True)
    assert said.startswith(answer)
    assert bool(said) == bool(answer)
    for _ in range(3):
        assert PAGE in await say(server, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert await say(server, b"GET /metrics HTTP/1.1\r\n\r\n") == b"", "the page has a bug once"
    assert PAGE in await say(server, b"GET /metrics HTTP/1.1\r\n\r\n")


async def test_who_says_nothing_does_not_keep_others_waiting_for_ever(
    nursery: trio.Nursery,
) -> None:
    listener = scraping.listen("127.0.0.1:0")
    server = scraping.MetricsServer(listener, lambda: lambda: PAGE, "text/plain", idle_s_max=0.05)
    nursery.start_soon(server.run)
    host, port = scraping.parse_address(scraping.address_of(listener))
    silent = [await trio.open_tcp_stream(host, port) for _ in range(20)]
    # So is one whose request this process had no time to send: whoever asks is served in the end.
    with trio.fail_after(LIMIT_S):
        while PAGE not in await say(server, b"GET /metrics HTTP/1.1\r\n\r\n"):
            continue
    for stream in silent:
        await stream.aclose()


async def test_many_who_come_and_say_nothing_of_use_fill_no_log(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def page() -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    listener = scraping.listen("0")
    server = scraping.MetricsServer(listener, lambda: page, "text/plain", idle_s_max=LIMIT_S)
    nursery.start_soon(server.run)
    for _ in range(20):
        assert await say(server, b"", end=True) == b""
    said = await say(server, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"Stale file handle" in said
    assert caplog.records == []


async def test_a_page_is_served_over_ipv6(nursery: trio.Nursery) -> None:
    try:
        listener = scraping.listen("[::1]:0")
    except MountError as exc:
        pytest.skip(f"no IPv6 here: {exc}")
    server = scraping.MetricsServer(
        listener, lambda: lambda: PAGE, "text/plain", idle_s_max=LIMIT_S
    )
    nursery.start_soon(server.run)
    assert scraping.address_of(listener).startswith("[::1]:")
    assert PAGE in await say(server, b"GET /metrics HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9400", ("127.0.0.1", 9400)),
        ("0.0.0.0:9400", ("0.0.0.0", 9400)),
        ("[::1]:9400", ("::1", 9400)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_an_address_is_what_is_said_and_this_host_by_default(
    text: str, address: tuple[str, int]
) -> None:
    assert scraping.parse_address(text) == address


@pytest.mark.parametrize("text", ["", ":", ":9400", "a:b", "70000", "::1:9400", "-1", "²", "[]:1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--metrics"):
        scraping.parse_address(text)


def test_an_address_that_cannot_be_had_is_a_mount_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MountError, match="in use"):
            scraping.listen(f"127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(MountError, match="cannot serve metrics"):
        scraping.listen("192.0.2.1:1")
