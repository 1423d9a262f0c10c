"""The INIT reply gets our flags, whatever bytes come; and a busy mount never stops answering.

Method: the pure functions take made-up requests and replies; one real mount is read, listed and
written by several processes at once with cold caches, which is when tasks and threads meet.
"""

import os
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedupfs.fuse.handshake import (
    CACHE_SYMLINKS,
    HANDLE_KILLPRIV_V2,
    PARALLEL_DIROPS,
    WANTED,
    answer_with,
    offered_flags,
)
from tests.fuse.harness import Daemons

_INIT_OPCODE = 26


def init_request(flags: int, opcode: int = _INIT_OPCODE) -> bytes:
    header = struct.pack("<IIQQIIIHH", 56, opcode, 1, 0, 0, 0, 0, 0, 0)
    return header + struct.pack("<IIII", 7, 45, 1 << 20, flags)


def init_reply(flags: int) -> bytes:
    return struct.pack("<IiQ", 80, 0, 1) + struct.pack("<IIII", 7, 38, 1 << 20, flags) + bytes(48)


def flags_of(reply: bytes) -> int:
    return int(struct.unpack_from("<I", reply, 28)[0])


def test_only_what_the_kernel_offers_is_agreed() -> None:
    offered = offered_flags(init_request(HANDLE_KILLPRIV_V2 | PARALLEL_DIROPS | 1))
    reply = answer_with(init_reply(1), offered)
    assert flags_of(reply) == HANDLE_KILLPRIV_V2 | PARALLEL_DIROPS | 1
    assert not flags_of(reply) & CACHE_SYMLINKS


def test_nothing_but_the_flags_of_the_reply_changes() -> None:
    before, after = init_reply(1), answer_with(init_reply(1), WANTED)
    assert before[:28] == after[:28]
    assert before[32:] == after[32:]


def test_another_request_offers_nothing() -> None:
    assert offered_flags(init_request(WANTED, opcode=1)) == 0


@given(st.binary(max_size=100))
def test_any_bytes_are_taken(data: bytes) -> None:
    assert 0 <= offered_flags(data) < 1 << 32
    assert len(answer_with(data, WANTED)) == len(data)


_READER = """
import os, sys
root, rounds = sys.argv[1], int(sys.argv[2])
for number in range(rounds):
    for name in sorted(os.listdir(root)):
        path = os.path.join(root, name)
        descriptor = os.open(path, os.O_RDONLY)
        data = os.read(descriptor, 1 << 20)
        assert data == name.encode() * (len(data) // len(name)), path
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    with open(os.path.join(root, f"w{os.getpid():08d}"), "wb") as file:
        file.write(f"w{os.getpid():08d}".encode() * 9000)
"""


@pytest.mark.fuse
def test_readers_and_writers_at_once_are_all_answered(daemons: Daemons) -> None:
    mounted = daemons.start()
    root = mounted.path / "many"
    root.mkdir()
    for number in range(60):
        name = f"f{number:08d}"
        (root / name).write_bytes(name.encode() * 20_000)
    for pack in mounted.store.glob("packs/*/*"):
        with pack.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    readers = [subprocess.Popen([sys.executable, "-c", _READER, str(root), "8"]) for _ in range(6)]
    assert [reader.wait(timeout=100) for reader in readers] == [0] * 6
