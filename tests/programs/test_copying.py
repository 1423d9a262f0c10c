"""What copies trees copies them whole, onto a mount and off it again.

Method: a native tree with everything that a tree may hold; rsync -aHAXnc finds no difference, a tar
stream of the copy is that of the original to the byte, sparse files stay sparse.
"""

from __future__ import annotations

import os
import random
import socket
import stat
from pathlib import Path

import pytest

from tests.programs.place import Place, listing, run

pytestmark = [pytest.mark.fuse, pytest.mark.unmeasured]

MIB = 1 << 20
IS_ROOT = os.geteuid() == 0


def make_tree(top: Path) -> None:
    """Every kind of object, name, attribute and hole, and more than one chunk of data."""
    source = random.Random(5)
    for number in range(60):
        directory = top / f"d{number % 6}" / "deeper"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}").write_bytes(source.randbytes(source.randrange(9000)))
    (top / "large").write_bytes(source.randbytes(5 * MIB))
    (top / "empty").touch()
    with (top / "sparse").open("wb") as file:
        file.seek(3 * MIB)
        file.write(source.randbytes(5000))
        file.seek(16 * MIB)
        file.write(source.randbytes(5000))
        file.truncate(24 * MIB)
    (top / "d0" / "hard").hardlink_to(top / "d1" / "deeper" / "f1")
    (top / "harder").hardlink_to(top / "d1" / "deeper" / "f1")
    (top / "link").symlink_to("../" + "x" * 300)
    os.mkfifo(top / "fifo", 0o640)
    for name in (b"new\nline", b"bad \xff utf", b"-dash", "snowman ☃".encode(), b"n" * 255):
        Path(os.fsdecode(os.fsencode(top) + b"/" + name)).write_bytes(name)
    with socket.socket(socket.AF_UNIX) as server:
        top_fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
        server.bind(f"/proc/self/fd/{top_fd}/socket")  # the path itself may be too long
        os.close(top_fd)
    if IS_ROOT:
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(top / "d2", 12345, 54321)
    (top / "d3").chmod(0o2751)
    (top / "large").chmod(0o4555)
    os.setxattr(top / "large", "user.text", b"\0value\xff" * 100)
    os.setxattr(top / "d4", "user.empty", b"")
    run("setfacl", "-m", "u:1234:rw-,g:4321:r--", top / "empty")
    run("setfacl", "-d", "-m", "u:1234:rwx", top / "d5")
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        os.utime(path, ns=(0, 1_700_000_000_123_456_789 + number), follow_symlinks=False)


@pytest.fixture
def tree(place: Place) -> Path:
    top = place.native / "tree"
    top.mkdir()
    make_tree(top)
    return top


def differences(one: Path, other: Path) -> str:
    return run(
        "rsync", "-aHAXnc", "--devices", "--specials", "--delete", "--itemize-changes",
        f"{one}/", f"{other}/",
    )  # fmt: skip


@pytest.mark.program("rsync", "setfacl")
def test_rsync_finds_what_it_copied(place: Place, tree: Path) -> None:
    copy, back = place.mount / "copy", place.native / "back"
    run("rsync", "-aHAX", f"{tree}/", f"{copy}/")
    assert differences(tree, copy) == ""
    place.remount()
    assert differences(tree, copy) == differences(copy, tree) == ""
    run("rsync", "-aHAX", f"{copy}/", f"{back}/")
    assert differences(tree, back) == ""
    assert listing(copy) == listing(back) == listing(tree)

    (tree / "d1" / "deeper" / "f7").write_bytes(b"changed")
    with (tree / "large").open("r+b") as file:
        file.seek(4 * MIB)
        file.write(b"changed")
    (tree / "d2" / "deeper" / "f2").unlink()
    run("rsync", "-aHAX", "--delete", "--inplace", "--no-whole-file", f"{tree}/", f"{copy}/")
    assert differences(tree, copy) == ""
    assert run("rsync", "-aHAX", "--itemize-changes", "--delete", f"{tree}/", f"{copy}/") == ""


TAR = ["tar", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"]
PAX = "--pax-option=exthdr.name=%d/%f,delete=atime,delete=ctime"
EXACT = [
    "--sort=name",
    "--format=posix",
    PAX,
]


@pytest.mark.program("tar", "setfacl")
def test_tar_restores_everything_and_reads_the_same_stream_back(place: Place, tree: Path) -> None:
    (tree / "socket").unlink()  # which tar leaves out
    os.utime(tree, ns=(0, 0))
    stream, plain, again = (place.native / f"{name}.tar" for name in ("sparse", "plain", "again"))
    copy = place.mount / "copy"
    copy.mkdir()
    run(*TAR, "--sparse", "-cf", stream, "-C", tree, ".")
    assert stream.stat().st_size < 8 * MIB
    run(*TAR, "--sparse", "-xpf", stream, "-C", copy)
    assert listing(copy) == listing(tree)
    assert (copy / "sparse").stat().st_blocks * 512 < MIB
    place.remount()
    assert listing(copy) == listing(tree)
    assert (copy / "sparse").stat().st_blocks * 512 < MIB
    run(*TAR, "--compare", "-f", stream, "-C", copy)
    run(*TAR, *EXACT, "-cf", plain, "-C", tree, ".")
    run(*TAR, *EXACT, "-cf", again, "-C", copy, ".")
    run("cmp", plain, again)


def test_cp_copies_holes_however_it_is_told_and_cannot_reflink(
    place: Place,
) -> None:
    source = place.mount / "source"
    with source.open("wb") as file:
        file.write(b"x" * 100_000)
        file.seek(10 * MIB)
        file.write(random.Random(1).randbytes(10_000))
        file.truncate(20 * MIB)
    copies = [place.mount / f"copy-{how}" for how in ("never", "auto", "always")]
    for copy in copies:
        how = copy.name.removeprefix("copy-")
        run("cp", "--reflink=auto", f"--sparse={how}", source, copy)
        run("cmp", source, copy)
    said = run("cp", "--reflink=always", source, place.mount / "clone", expect=1)
    assert "failed to clone" in said
    place.remount()
    for path in (source, *copies):  # zeros that were written are holes too, once they are chunks
        run("cmp", source, path)
        assert path.stat().st_size == 20 * MIB
        assert path.stat().st_blocks * 512 < MIB


@pytest.mark.program("setfacl")
def test_cp_a_copies_all_and_find_finds_by_number(place: Place, tree: Path) -> None:
    copy = place.mount / "copy"
    run("cp", "-a", tree, copy)
    assert listing(copy) == listing(tree)
    run("cp", "-a", copy, place.mount / "second")
    assert listing(place.mount / "second") == listing(tree)
    run("diff", "-r", "--no-dereference", copy / "d1", place.mount / "second" / "d1")
    numbers = {path: path.lstat().st_ino for path in copy.rglob("*")}
    place.remount()
    three = {copy / "harder", copy / "d0" / "hard", copy / "d1" / "deeper" / "f1"}
    for path in (copy / "harder", copy / "large", copy / "link", copy / "d5", copy / "fifo"):
        expected = three if path in three else {path}
        number = str(numbers[path])
        found = run("find", copy, "-inum", number, "-print0").rstrip("\0").split("\0")
        assert {Path(name) for name in found} == expected
        if path.name == "fifo":  # find would open it, and wait for a writer, on any file system
            continue
        found = run("find", copy, "-samefile", path, "-print0").rstrip("\0").split("\0")
        assert {Path(name) for name in found} == expected
    for question in (["-type", "f"], ["-links", "+2"], ["-size", "+1M"], ["-perm", "/6000"]):
        answers = [
            sorted(run("find", ".", *question, "-print0", cwd=top).split("\0"))
            for top in (copy, tree)
        ]
        assert answers[0] == answers[1] != [""]


def test_tools_that_change_files_in_place(place: Place) -> None:
    for top in place.both():
        lines = [f"{number * 7919 % 10007} line" for number in range(20_000)]
        (top / "text").write_text("\n".join(lines) + "\n")
        run("sort", "-n", "-o", top / "text", top / "text")
        run("sed", "-i", "s/^1\\(.*\\)line/one \\1/", top / "text")
        run("dd", "if=text", "of=text", "bs=1000", "seek=7", "count=3", "conv=notrunc", cwd=top)
        run("split", "-b", "30000", top / "text", top / "part.")
        run("truncate", "-s", "-777", top / "part.ab")
        run("sh", "-c", "cat part.* >> text; mv part.aa renamed; rm part.ac; ln -f renamed part.ab",
            cwd=top)  # fmt: skip
    native, mount = place.both()
    assert listing(mount, times=False) == listing(native, times=False)
    place.remount()
    assert listing(mount, times=False) == listing(native, times=False)
