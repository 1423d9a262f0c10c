"""What programs do to the content of files works on a mount as on any file system.

Method: system calls on a real mount of a real view; one daemon for the module.
"""

import errno
import mmap
import os
import random
from pathlib import Path

import pytest

from tests.fuse.harness import Mounted

pytestmark = pytest.mark.fuse

MIB = 1 << 20


def test_a_file_can_be_used_after_its_last_name_is_gone(work: Path) -> None:
    file = os.open(work / "f", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(file, b"before")
        os.unlink(work / "f")
        assert not (work / "f").exists()
        os.pwrite(file, b"after!", 0)
        os.ftruncate(file, 5)
        assert os.pread(file, 100, 0) == b"after"
        assert os.fstat(file).st_nlink == 0
    finally:
        os.close(file)
    assert list(work.iterdir()) == []


def test_a_shared_mapping_writes_through_and_reads_back(work: Path) -> None:
    path = work / "mapped"
    path.write_bytes(bytes(3 * MIB))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[MIB - 2 : MIB + 2] = b"abcd"
        mapping.flush()
        assert path.read_bytes()[MIB - 2 : MIB + 2] == b"abcd"
        file.seek(MIB)
        file.write(b"CD")
        file.flush()
        assert mapping[MIB - 2 : MIB + 2] == b"abCD"
    assert path.read_bytes() == bytes(MIB - 2) + b"abCD" + bytes(2 * MIB - 2)


def test_a_private_mapping_changes_nothing(work: Path) -> None:
    path = work / "mapped"
    path.write_bytes(b"x" * 8192)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
        mapping[0:1] = b"y"
    assert path.read_bytes() == b"x" * 8192


def test_appending_through_two_descriptors_loses_nothing(work: Path) -> None:
    first = os.open(work / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    second = os.open(work / "log", os.O_WRONLY | os.O_APPEND)
    for number in range(50):
        os.write(first, b"a%02d" % number)
        os.write(second, b"b%02d" % number)
    os.close(first)
    os.close(second)
    expected = b"".join(b"a%02db%02d" % (number, number) for number in range(50))
    assert (work / "log").read_bytes() == expected


def test_open_with_o_trunc_empties_the_file_for_all(work: Path) -> None:
    path = work / "f"
    path.write_bytes(b"x" * 100_000)
    reader = os.open(path, os.O_RDONLY)
    assert os.pread(reader, 4, 0) == b"xxxx"
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert os.pread(reader, 4, 0) == b""
    assert os.fstat(reader).st_size == path.stat().st_size == 0
    os.close(reader)


def test_o_excl_creates_once(work: Path) -> None:
    os.close(os.open(work / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    with pytest.raises(FileExistsError):
        os.open(work / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)


def test_a_file_is_created_with_a_mode_that_forbids_the_writing_it_is_for(work: Path) -> None:
    file = os.open(work / "f", os.O_CREAT | os.O_WRONLY, 0o400)
    assert os.write(file, b"abc") == 3
    os.close(file)
    assert (work / "f").read_bytes() == b"abc"


def test_sync_calls_of_every_kind_succeed(work: Path) -> None:
    file = os.open(work / "f", os.O_RDWR | os.O_CREAT, 0o644)
    os.write(file, b"abc")
    os.fsync(file)
    os.fdatasync(file)
    os.close(file)
    directory = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)
    synced = os.open(work / "f", os.O_WRONLY | os.O_SYNC)
    os.write(synced, b"ABC")
    os.close(synced)
    assert (work / "f").read_bytes() == b"ABC"


def test_truncating_up_and_down_and_writing_past_the_end(work: Path) -> None:
    path = work / "f"
    path.write_bytes(b"0123456789")
    os.truncate(path, 4)
    os.truncate(path, 8)
    assert path.read_bytes() == b"0123\0\0\0\0"
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(b"end")
    assert path.stat().st_size == MIB + 3
    assert path.read_bytes() == b"0123" + bytes(MIB - 4) + b"end"


def test_a_hole_reads_as_zeros_and_costs_nothing(work: Path) -> None:
    path = work / "sparse"
    before = os.statvfs(work).f_bfree
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek((1 << 40) - 1)
        file.write(b"x")
    assert path.stat().st_size == 1 << 40
    with path.open("rb") as file:
        file.seek(1 << 29)
        assert file.read(4096) == bytes(4096)
        file.seek(-4, os.SEEK_END)
        assert file.read() == b"\0\0\0x"
    figures = os.statvfs(work)
    assert (before - figures.f_bfree) * figures.f_frsize < 1 << 32
    path.unlink()


def test_many_small_writes_at_random_places(work: Path) -> None:
    expected = bytearray(256 * 1024)
    file = os.open(work / "f", os.O_RDWR | os.O_CREAT, 0o644)
    for number in range(500):
        offset = number * 7919 % (len(expected) - 100)
        data = bytes([number % 255 + 1]) * (number % 97 + 1)
        expected[offset : offset + len(data)] = data
        os.pwrite(file, data, offset)
    size = os.fstat(file).st_size
    assert os.pread(file, len(expected), 0) == expected[:size]
    os.close(file)
    assert (work / "f").read_bytes() == expected[:size]


def test_a_write_only_descriptor_cannot_read_nor_a_reader_write(work: Path) -> None:
    (work / "f").write_bytes(b"abc")
    writer = os.open(work / "f", os.O_WRONLY)
    reader = os.open(work / "f", os.O_RDONLY)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.read(writer, 1)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.write(reader, b"x")
    os.close(writer)
    os.close(reader)


def test_copying_in_the_kernel_works(work: Path) -> None:
    content = random.Random(1).randbytes(300_000)
    (work / "from").write_bytes(content)
    with (work / "from").open("rb") as source, (work / "to").open("wb") as target:
        copied = 0
        while copied < len(content):
            copied += os.copy_file_range(source.fileno(), target.fileno(), len(content) - copied)
    assert (work / "to").read_bytes() == content


def test_a_large_file_reads_back_cold(work: Path) -> None:
    source = random.Random(2)
    content = source.randbytes(1 * MIB) * 12 + source.randbytes(5 * MIB)
    path = work / "large"
    path.write_bytes(content)
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
    assert path.read_bytes() == content


def test_beyond_the_largest_file_is_too_large_and_no_failure_of_the_store(work: Path) -> None:
    file = os.open(work / "f", os.O_RDWR | os.O_CREAT, 0o644)
    os.write(file, b"x" * 300_000)
    for offset in (1 << 46, 1 << 60, (1 << 63) - 2):
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            os.pwrite(file, b"y", offset)
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            os.ftruncate(file, offset + 1)
    assert os.fstat(file).st_size == 300_000
    os.close(file)
    assert (work / "f").read_bytes() == b"x" * 300_000


def test_where_the_store_lies_may_end_files_earlier(work: Path, shared_mount: Mounted) -> None:
    """ext4 has files of up to 16 TiB: a write beyond is the caller's error, not the store's."""
    beside = os.open(shared_mount.store.parent / "beside", os.O_RDWR | os.O_CREAT, 0o600)
    file = os.open(work / "f", os.O_RDWR | os.O_CREAT, 0o644)
    for offset in ((1 << 44) - 8192, (1 << 44) + 5, (1 << 46) - 1):
        outcomes = []
        for each in (beside, file):
            try:
                outcomes.append(os.pwrite(each, b"y", offset))
            except OSError as exc:
                outcomes.append(-(exc.errno or 0))
        assert outcomes[0] == outcomes[1]
    os.close(beside)
    os.close(file)
    (work / "f").unlink()
    (shared_mount.store.parent / "beside").unlink()
