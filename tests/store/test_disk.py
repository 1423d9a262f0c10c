"""The port to the operating system: all or nothing, and every failure with its path."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dedupfs.errors import StoreError, StoreFullError
from dedupfs.store.realdisk import RealDisk
from tests.store.payloads import noise

DISK = RealDisk()


def test_gathered_buffers_are_written_whole_and_in_order(tmp_path: Path) -> None:
    file = DISK.open(tmp_path / "file", create=True)
    parts = [noise(number, number % 50) for number in range(1500)]  # more than one pwritev takes
    DISK.pwrite(file, parts, 7)
    assert DISK.pread(file, 1 << 20, 7) == b"".join(parts)
    assert DISK.size(file) == 7 + sum(map(len, parts))


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def short(fd: int, buffers: list[memoryview], offset: int) -> int:
        return real(fd, [buffers[0][:3]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    file = DISK.open(tmp_path / "file", create=True)
    DISK.pwrite(file, [b"one two", b"", bytearray(b" three"), memoryview(b" four")], 0)
    assert DISK.pread(file, 100, 0) == b"one two three four"


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"one two three")
    file = DISK.open(tmp_path / "file")
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, min(length, 2), offset))
    assert DISK.pread(file, 7, 4) == b"two thr"
    assert DISK.pread(file, 100, 4) == b"two three"


@pytest.mark.parametrize("buffers", [[b"x"], [b"x", b"y"]])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_is_store_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, buffers: list[bytes]
) -> None:
    def fail(*_args: object) -> int:
        raise OSError(number, os.strerror(number))

    file = DISK.open(tmp_path / "file", create=True)
    monkeypatch.setattr(os, "pwrite", fail)
    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(StoreFullError, match=r"cannot write .*/file"):
        DISK.pwrite(file, buffers, 0)


def test_failures_name_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "file").write_bytes(b"x")
    file = DISK.open(tmp_path / "file")
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(StoreError, match="/file: Input/output error") as caught:
        DISK.pread(file, 1, 0)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(StoreError, match="cannot open"):
        DISK.open(tmp_path / "file" / "below")
    with pytest.raises(StoreError, match="cannot link"):
        DISK.link(tmp_path / "file", tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        DISK.open(tmp_path / "none")


def test_a_cached_read_says_when_it_would_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(numbers[0], os.strerror(numbers[0]))

    (tmp_path / "file").write_bytes(b"abc")
    file = DISK.open(tmp_path / "file")
    buffers = [memoryview(bytearray(2)), memoryview(bytearray(1))]
    assert not DISK.preadv_cached(file, buffers, 1)  # the file ends first
    numbers = [errno.EAGAIN, errno.EOPNOTSUPP, errno.EIO]
    monkeypatch.setattr(os, "preadv", refuse)
    while numbers[0] != errno.EIO:
        assert not DISK.preadv_cached(file, buffers, 0)
        numbers.pop(0)
    with pytest.raises(StoreError, match="cannot read"):
        DISK.preadv_cached(file, buffers, 0)


def test_buffers_are_filled_in_spite_of_short_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def short(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return real(fd, [buffers[0][:2]], offset)

    (tmp_path / "file").write_bytes(b"one two three")
    file = DISK.open(tmp_path / "file")
    DISK.will_need(file, 0, 1 << 20)
    monkeypatch.setattr(os, "preadv", short)
    buffers = [memoryview(bytearray(length)) for length in (3, 5, 100)]
    assert DISK.preadv(file, buffers, 4) == 9
    assert b"".join(buffers)[:9] == b"two three"


def test_no_advice_is_longer_than_the_kernel_takes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advised: list[tuple[int, int]] = []
    (tmp_path / "file").write_bytes(b"")
    file = DISK.open(tmp_path / "file")
    monkeypatch.setattr(
        os, "posix_fadvise", lambda _fd, start, length, _advice: advised.append((start, length))
    )
    DISK.will_need(file, 1000, 1000 + (1 << 20))
    assert max(length for _, length in advised) <= 128 << 10
    assert [start + length for start, length in advised[:-1]] == [start for start, _ in advised[1:]]
    assert (advised[0][0], sum(length for _, length in advised)) == (1000, 1 << 20)


def test_holes_are_punched_and_seen(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 40_960)
    file = DISK.open(tmp_path / "file", write=True)
    DISK.fsync(file)
    if not DISK.punch(file, 8192, 32_768):
        pytest.skip("no holes on this file system")
    assert DISK.pread(file, 40_960, 0) == b"x" * 8192 + bytes(24_576) + b"x" * 8192
    assert DISK.is_solid(file, 0, 8192)
    assert not DISK.is_solid(file, 0, 8193)
    assert DISK.is_solid(file, 32_768, 40_960)
    assert not DISK.is_solid(file, 50_000, 50_001)


def test_space_is_kept_behind_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    assert DISK.reserve(path, 1 << 20)
    assert path.stat().st_size == 1
    assert path.stat().st_blocks * 512 >= 1 << 20


def test_names_that_are_not_there_are_no_failure(tmp_path: Path) -> None:
    DISK.unlink(tmp_path / "none")
    assert DISK.listdir(tmp_path / "none") == []
    assert DISK.link_count(tmp_path / "none") == 0
    DISK.mkdir(tmp_path / "dir")
    DISK.mkdir(tmp_path / "dir")
    assert DISK.listdir(tmp_path) == ["dir"]


def test_a_lock_is_held_by_one_file_at_a_time(tmp_path: Path) -> None:
    one, two = (DISK.open(tmp_path / "lock", create=True) for _ in range(2))
    assert DISK.lock(one)
    assert not DISK.lock(two)
    one.close()
    assert DISK.lock(two)
    two.close()
    two.close()


def test_a_small_address_space_gets_a_small_index_map(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dedupfs.store import Store\n"
        "with Store.create(Path(sys.argv[1])) as store, store.transaction(): pass"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    subprocess.run([sys.executable, "-c", code, tmp_path / "store"], check=True, preexec_fn=limit)


def test_advice_about_what_is_written_changes_no_byte(tmp_path: Path) -> None:
    file = DISK.open(tmp_path / "f", write=True, create=True)
    data = bytes(range(256)) * 4096
    DISK.pwrite(file, [data], 0)
    DISK.write_out(file, 1000, 900_000)
    DISK.drop_cached(file, 1000, 900_000)
    DISK.drop_cached(file, 1 << 40, 2 << 40)  # behind the end
    assert DISK.pread(file, len(data) + 1, 0) == data


def test_a_file_that_outlives_the_program_says_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from dedupfs.store import disk, realdisk\n"
        "sys.alive = [os, disk]  # whose names go one module after the other, disk's first\n"
        "os.kept = realdisk.RealDisk().open(Path(sys.argv[1]), write=True, create=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert ended.stderr == ""
