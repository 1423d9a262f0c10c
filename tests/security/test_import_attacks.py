"""Whoever can write into the source cannot lead an import outside it, nor make it wait or act.

Method: names are swapped right before the system call that uses them (``swaps.py``), in every
direction; then by a real process that flips a name as fast as it can while imports run.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.model import FILE_BYTES_MAX, TreeEntry
from dedupfs.namespace.contents import load_recipe
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store
from dedupfs.transfer.entries import entries_below
from dedupfs.transfer.ingest import IngestOptions, ingest_tree
from dedupfs.transfer.report import IngestReport, Progress
from tests.conftest import Scale
from tests.security.swaps import before_open, every_open

SECRET = b"the secret that no import may read"
OPTIONS = IngestOptions(reread=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", chunk_bytes_average=4096, compression="none") as store:
        yield store
        assert [str(problem) for problem in check(store).problems] == []


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree with a file and a directory to attack, and files around them."""
    directory = tmp_path / "source"
    (directory / "victim-d").mkdir(parents=True)
    (directory / "victim-d" / "inside").write_bytes(b"harmless")
    (directory / "victim-f").write_bytes(b"harmless")
    (directory / "zzz").write_bytes(b"the last")
    return directory


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "inside").write_bytes(SECRET)
    return directory


def content(store: Store, report: IngestReport) -> dict[bytes, tuple[TreeEntry, bytes]]:
    """Return all entries of the snapshot, with the bytes of files."""
    assert report.snapshot is not None
    found = {}
    for path, entry in entries_below(TreeReader(store), report.snapshot.root):
        data = b""
        if entry.is_file:
            recipe = load_recipe(store, entry.content)
            data = store.read(recipe.cut(0, recipe.size))
        found[path] = (entry, data)
    return found


def to_symlink(path: Path, outside: Path) -> None:
    is_directory = path.is_dir()
    path.rename(path.with_name("gone"))
    path.symlink_to(outside if is_directory else outside / "inside")


def to_fifo(path: Path, _outside: Path) -> None:
    path.rename(path.with_name("gone"))
    os.mkfifo(path)


def to_socket(path: Path, _outside: Path) -> None:
    path.rename(path.with_name("gone"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def to_other_kind(path: Path, _outside: Path) -> None:
    is_directory = path.is_dir()
    path.rename(path.with_name("gone"))
    path.touch() if is_directory else path.mkdir()


def to_nothing(path: Path, _outside: Path) -> None:
    path.rename(path.with_name("gone"))


SWAPS = [to_symlink, to_fifo, to_socket, to_other_kind, to_nothing]


@pytest.mark.parametrize("victim", ["victim-d", "victim-f"])
@pytest.mark.parametrize("swap", SWAPS, ids=lambda swap: swap.__name__)
def test_what_becomes_something_else_is_left_out(
    store: Store,
    source: Path,
    outside: Path,
    victim: str,
    swap: Callable[[Path, Path], None],
) -> None:
    path = source / victim
    number = 2 if path.is_dir() else 1  # the first pass only counts: it opens directories
    with before_open(victim.encode(), lambda: swap(path, outside), number) as opens:
        report = ingest_tree(store, source, "s", options=OPTIONS)
    assert len(opens) == number
    found = content(store, report)
    assert all(SECRET not in data for _, data in found.values())
    assert found[b"zzz"][1] == b"the last"
    assert victim.encode() not in found
    assert [problem.path for problem in report.problems] == [victim.encode()]


@pytest.mark.parametrize("swap", [to_symlink, to_fifo], ids=lambda swap: swap.__name__)
def test_a_file_is_held_before_it_is_opened_for_reading(
    store: Store, source: Path, outside: Path, swap: Callable[[Path, Path], None]
) -> None:
    """Method: the name is swapped after the object was looked at and before it is read."""
    swapped: list[bytes] = []

    def swap_after_hold(path: bytes, flags: int) -> None:
        if path == b"victim-f":
            assert flags & os.O_PATH, "a name of the source is only ever held"
        elif path.startswith(b"/proc/self/fd/") and not swapped:
            target = os.readlink(path)
            if target == os.fsencode(source / "victim-f"):
                swapped.append(target)
                swap(source / "victim-f", outside)

    with every_open(swap_after_hold):
        report = ingest_tree(store, source, "s", options=OPTIONS)
    assert swapped
    assert content(store, report)[b"victim-f"][1] == b"harmless"


def test_a_directory_that_is_moved_away_meanwhile_does_not_lead_out(
    store: Store, source: Path, outside: Path
) -> None:
    """Method: so deep that levels above are closed and reached again through '..'."""
    deep = source / "deep"
    path = deep
    for _ in range(150):
        path = path / "d"
    path.mkdir(parents=True)
    (path / "leaf").write_bytes(b"leaf")
    (deep / "later").write_bytes(b"later")

    def move(progress: Progress) -> None:
        moved = source / "deep" / "d" / "d"
        if progress.path.endswith(b"leaf") and moved.exists():
            moved.rename(outside / "moved")  # its '..' is the outside now

    report = ingest_tree(store, source, "s", options=OPTIONS, progress=move)
    assert all(SECRET not in data for _, data in content(store, report).values())


def test_a_file_of_exabytes_is_left_out_at_once(store: Store, source: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("no /dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="dedupfs-", dir=shm))
    try:
        with (directory / "huge").open("wb") as file:
            file.truncate(FILE_BYTES_MAX + 1)
        with (directory / "large").open("wb") as file:
            file.truncate(FILE_BYTES_MAX)
            file.write(b"begin")
        report = ingest_tree(store, directory, "s")
    except OSError as exc:
        pytest.skip(f"no sparse files there: {exc}")
    finally:
        shutil.rmtree(directory)
    assert [problem.path for problem in report.problems] == [b"huge"]
    assert report.logical_bytes == FILE_BYTES_MAX


FLIP = """
import ctypes, os, sys
one, other = (os.fsencode(path) for path in sys.argv[1:])
libc = ctypes.CDLL(None)
rounds = 0
print("ready", flush=True)
try:
    while not os.path.exists(sys.argv[1] + ".stop"):
        assert libc.renameat2(-100, one, -100, other, 2) == 0
        rounds += 1
finally:
    print(rounds, flush=True)
"""


def test_a_process_that_flips_names_gets_nothing_in(
    store: Store, source: Path, outside: Path, tmp_path: Path, scale: Scale
) -> None:
    """Method: RENAME_EXCHANGE between a directory and a link to the secret, as fast as it goes."""
    assert hasattr(ctypes.CDLL(None), "renameat2")
    flipped = source / "victim-d"
    (tmp_path / "link").symlink_to(outside)
    attacker = subprocess.Popen(
        [sys.executable, "-c", FLIP, str(flipped), str(tmp_path / "link")], stdout=subprocess.PIPE
    )
    assert attacker.stdout is not None
    try:
        assert attacker.stdout.readline() == b"ready\n"
        for number in range(scale(40, 5_000)):
            report = ingest_tree(store, source, f"s{number}", options=OPTIONS)
            found = content(store, report)
            assert all(SECRET not in data for _, data in found.values())
            assert found[b"zzz"][1] == b"the last"
    finally:
        Path(f"{flipped}.stop").touch()
        rounds = int(attacker.stdout.read())
        attacker.wait()
        attacker.stdout.close()
    assert rounds > 0


def test_what_cannot_be_read_without_effect_is_never_opened(store: Store, source: Path) -> None:
    """Fifos nobody writes to, sockets and devices: the import ends, and has all of them."""
    os.mkfifo(source / "fifo")
    to_socket(source / "victim-f", source)
    if os.geteuid() == 0:
        os.mknod(source / "device", 0o20600, os.makedev(1, 5))
    report = ingest_tree(store, source, "s")
    assert not report.problems
    kinds = {path: entry.mode >> 12 for path, (entry, _) in content(store, report).items()}
    assert (kinds[b"fifo"], kinds[b"victim-f"]) == (0o1, 0o14)
    assert kinds.get(b"device", 0o2) == 0o2
