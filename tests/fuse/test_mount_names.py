"""What programs do to names works on a mount as on any file system.

Method: system calls on a real mount of a real view; one daemon for the module.
"""

import ctypes
import errno
import os
import socket
import stat
from pathlib import Path

import pytest

pytestmark = pytest.mark.fuse

AT_FDCWD = -100
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def renameat2(old: Path, new: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def test_renaming_over_a_file_replaces_it_at_once(work: Path) -> None:
    (work / "new").write_bytes(b"new")
    (work / "old").write_bytes(b"old")
    inode = (work / "new").stat().st_ino
    reader = os.open(work / "old", os.O_RDONLY)
    os.replace(work / "new", work / "old")
    assert os.read(reader, 10) == b"old"
    os.close(reader)
    assert (work / "old").read_bytes() == b"new"
    assert (work / "old").stat().st_ino == inode
    assert os.listdir(work) == ["old"]


def test_renaming_over_directories(work: Path) -> None:
    (work / "full").mkdir()
    (work / "full" / "f").write_bytes(b"x")
    (work / "empty").mkdir()
    (work / "file").write_bytes(b"x")
    with pytest.raises(OSError, match=os.strerror(errno.ENOTEMPTY)):
        os.rename(work / "empty", work / "full")
    with pytest.raises(IsADirectoryError):
        os.rename(work / "file", work / "empty")
    with pytest.raises(NotADirectoryError):
        os.rename(work / "empty", work / "file")
    os.rename(work / "full", work / "empty")
    assert (work / "empty" / "f").read_bytes() == b"x"


def test_a_directory_moves_with_all_below_it(work: Path) -> None:
    (work / "a" / "b").mkdir(parents=True)
    (work / "a" / "b" / "f").write_bytes(b"deep")
    (work / "c").mkdir()
    inode = (work / "a" / "b" / "f").stat().st_ino
    os.rename(work / "a" / "b", work / "c" / "d")
    assert (work / "c" / "d" / "f").read_bytes() == b"deep"
    assert (work / "c" / "d" / "f").stat().st_ino == inode
    assert (work / "a").stat().st_nlink == 2
    assert (work / "c").stat().st_nlink == 3
    assert os.path.samefile(work / "c" / "d" / "..", work / "c")


def test_rename_noreplace_refuses_what_exists(work: Path) -> None:
    (work / "a").write_bytes(b"a")
    (work / "b").write_bytes(b"b")
    with pytest.raises(FileExistsError):
        renameat2(work / "a", work / "b", NOREPLACE)
    renameat2(work / "a", work / "c", NOREPLACE)
    assert sorted(os.listdir(work)) == ["b", "c"]


def test_rename_exchange_swaps_a_file_and_a_directory(work: Path) -> None:
    (work / "a").write_bytes(b"a")
    (work / "d").mkdir()
    (work / "d" / "f").write_bytes(b"f")
    renameat2(work / "a", work / "d", EXCHANGE)
    assert (work / "d").read_bytes() == b"a"
    assert (work / "a" / "f").read_bytes() == b"f"
    with pytest.raises(FileNotFoundError):
        renameat2(work / "a", work / "missing", EXCHANGE)


def test_rename_whiteout_is_refused(work: Path) -> None:
    (work / "a").write_bytes(b"a")
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        renameat2(work / "a", work / "b", WHITEOUT)


def test_hard_links_are_one_file(work: Path) -> None:
    (work / "d").mkdir()
    (work / "a").write_bytes(b"one")
    os.link(work / "a", work / "d" / "b")
    assert (work / "a").stat().st_nlink == 2
    assert os.path.samefile(work / "a", work / "d" / "b")
    (work / "d" / "b").write_bytes(b"changed")
    assert (work / "a").read_bytes() == b"changed"
    (work / "a").chmod(0o640)
    assert stat.S_IMODE((work / "d" / "b").stat().st_mode) == 0o640
    (work / "a").unlink()
    assert (work / "d" / "b").stat().st_nlink == 1
    assert (work / "d" / "b").read_bytes() == b"changed"
    with pytest.raises(PermissionError):
        os.link(work / "d", work / "e")


def test_symbolic_links(work: Path) -> None:
    target = b"nowhere/\xff" + b"x" * 3000
    os.symlink(target, bytes(work / "l"))
    assert os.readlink(bytes(work / "l")) == target
    assert (work / "l").lstat().st_size == len(target)
    (work / "f").write_bytes(b"x")
    os.symlink("f", work / "to-f")
    assert (work / "to-f").read_bytes() == b"x"


@pytest.mark.root
def test_special_files(work: Path) -> None:
    os.mkfifo(work / "fifo", 0o640)
    os.mknod(work / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(work / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    os.mknod(work / "plain", stat.S_IFREG | 0o600)
    with socket.socket(socket.AF_UNIX) as server:
        directory = os.open(work, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{directory}/socket")
        os.close(directory)
    assert stat.S_ISFIFO((work / "fifo").stat().st_mode)
    assert stat.S_ISSOCK((work / "socket").stat().st_mode)
    assert stat.S_ISREG((work / "plain").stat().st_mode)
    assert (work / "null").stat().st_rdev == os.makedev(1, 3)
    assert (work / "disk").stat().st_rdev == os.makedev(259, 70_000)
    reader = os.open(work / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(work / "fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    os.close(writer)


def test_names_of_any_bytes_up_to_255(work: Path) -> None:
    names = [b"x" * 255, b"\xff\xfe\x80", b"new\nline", b"tab\tand space ", b"\x01", "ü".encode()]
    for name in names:
        (Path(os.fsdecode(bytes(work) + b"/" + name))).write_bytes(name)
    assert sorted(os.listdir(bytes(work))) == sorted(names)
    for name in names:
        assert Path(os.fsdecode(bytes(work) + b"/" + name)).read_bytes() == name
    with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
        (work / ("x" * 256)).write_bytes(b"")


def test_removing_directories(work: Path) -> None:
    (work / "d").mkdir()
    (work / "d" / "f").write_bytes(b"")
    with pytest.raises(OSError, match=os.strerror(errno.ENOTEMPTY)):
        (work / "d").rmdir()
    with pytest.raises(IsADirectoryError):
        (work / "d").unlink()
    with pytest.raises(NotADirectoryError):
        (work / "d" / "f").rmdir()
    (work / "d" / "f").unlink()
    held = os.open(work / "d", os.O_RDONLY)
    (work / "d").rmdir()
    assert os.listdir(held) == []
    with pytest.raises(FileNotFoundError):
        os.open("f", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=held)
    os.close(held)


def test_a_name_that_was_missing_is_seen_once_it_exists(work: Path) -> None:
    assert not (work / "late").exists()
    (work / "late").write_bytes(b"here")
    assert (work / "late").exists()
    (work / "late").rename(work / "later")
    assert not (work / "late").exists()
    assert (work / "later").read_bytes() == b"here"


class DirectoryStream:
    """readdir(3) with telldir and seekdir, which Python does not have."""

    def __init__(self, path: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        for name, result in (("opendir", "P"), ("readdir", "P"), ("telldir", "l")):
            types = {"P": ctypes.c_void_p, "l": ctypes.c_long}
            getattr(self._libc, name).restype = types[result]
        self._stream = ctypes.c_void_p(self._libc.opendir(os.fsencode(path)))

    def next(self) -> bytes | None:
        entry = self._libc.readdir(self._stream)
        return ctypes.string_at(entry + 19) if entry else None  # offset of d_name, x86-64 and arm64

    def tell(self) -> int:
        position: int = self._libc.telldir(self._stream)
        return position

    def seek(self, position: int) -> None:
        self._libc.seekdir(self._stream, ctypes.c_long(position))

    def close(self) -> None:
        self._libc.closedir(self._stream)


def test_places_in_a_big_directory_stay_valid_while_entries_come_and_go(work: Path) -> None:
    names = [b"%05d" % number for number in range(3000)]
    for name in names:
        os.close(os.open(bytes(work) + b"/" + name, os.O_CREAT | os.O_WRONLY, 0o644))
    stream = DirectoryStream(work)
    seen: list[bytes] = []
    places: list[int] = []
    while entry := stream.next():
        seen.append(entry)
        places.append(stream.tell())
    assert sorted(seen) == sorted([*names, b".", b".."]) or sorted(seen) == names
    for name in seen[100:200]:
        if name in names:
            os.unlink(bytes(work) + b"/" + name)
    (work / "fresh").write_bytes(b"")
    stream.seek(places[1499])
    rest = []
    while entry := stream.next():
        rest.append(entry)
    stream.close()
    assert [name for name in rest if name != b"fresh"] == seen[1500:]


def test_removing_while_listing_removes_everything_once(work: Path) -> None:
    for number in range(2500):
        (work / f"{number:04}").touch()
    removed = 0
    with os.scandir(work) as entries:
        for entry in entries:
            os.unlink(entry.path)
            removed += 1
    assert removed == 2500
    assert os.listdir(work) == []
