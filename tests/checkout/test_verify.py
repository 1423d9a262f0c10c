"""What was changed in a checkout, or below its links, is found; nobody leads us outside of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dedupfs.checkout.make import make_checkout
from dedupfs.checkout.place import find_checkout
from dedupfs.checkout.verify import verify_checkout
from dedupfs.errors import SourceError, StoreFullError, UsageError
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.scrub import scrub
from dedupfs.namespace.checkouts import list_numbers
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store, Table
from tests.checkout.places import SETTINGS, check_out, remove, sound, update, what
from tests.fakes import FaultyDisk
from tests.maintenance.samples import import_directory, make_directory, noise


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", **SETTINGS) as opened:
        source = make_directory(tmp_path / "one")
        import_directory(opened, source, "one")
        (source / "sub" / "deep" / "linked").write_bytes(b"other")
        (source / "sub" / "same").write_bytes(noise("two", 40_000))
        import_directory(opened, source, "two")
        yield opened
        sound(opened)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def findings(store: Store, directory: Path, *, full: bool = False) -> dict[str, str]:
    report = verify_checkout(store, find_checkout(store, directory), directory, full=full)
    assert report.ok == all(found.kind == "extra" for found in report.findings)
    return {os.fsdecode(found.path): found.kind for found in report.findings}


def test_names_that_are_not_as_they_were_made_are_found(store: Store, out: Path) -> None:
    check_out(store, "one", out, "symlink")
    assert findings(store, out, full=True) == {}
    (out / "medium").unlink()
    (out / "sub" / "small").write_bytes(b"changed")
    (out / "mine").write_bytes(b"")
    (out / "sub" / "holes").unlink()
    (out / "sub" / "holes").symlink_to("/nowhere")
    wanted = {
        "medium": "missing",
        "sub/small": "changed",
        "mine": "extra",
        "sub/holes": "broken link",
    }
    assert findings(store, out) == wanted
    update(store, out, None, force=True)
    assert findings(store, out) == {"mine": "extra"}


@pytest.mark.parametrize("link", ["symlink", "hardlink"])
@pytest.mark.allow_log("damaged record")
def test_who_writes_through_a_link_is_found(store: Store, out: Path, link: str) -> None:
    check_out(store, "one", out, link)
    target = (out / "large").resolve()
    saved = target.read_bytes()
    status = target.stat()
    target.chmod(0o600)
    with target.open("r+b") as file:
        file.write(b"evil")
    assert findings(store, out) == {"large": "changed target"}
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    target.chmod(0o444)
    assert findings(store, out) == {}
    assert findings(store, out, full=True) == {"large": "changed target"}
    assert not scrub(store).ok
    target.chmod(0o600)
    target.write_bytes(saved)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    target.chmod(status.st_mode & 0o777)
    assert findings(store, out, full=True) == {}


def test_a_planted_link_leads_no_update_and_no_removal_outside(
    store: Store, out: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "same").write_bytes(b"not ours")
    (outside / "text").write_bytes(b"not ours")
    check_out(store, "one", out, "copy")
    (out / "sub").rename(tmp_path / "aside")
    (out / "sub").symlink_to(outside)
    with pytest.raises(UsageError, match="sub"):
        update(store, out, "two")
    with suppress(SourceError):
        update(store, out, "two", force=True)
    report = remove(store, out)
    assert b"sub" in report.kept or not out.exists()
    assert sorted(path.name for path in outside.iterdir()) == ["same", "text"]
    assert (outside / "same").read_bytes() == b"not ours"


def test_a_moved_directory_is_known_and_a_copy_refused(
    store: Store, out: Path, tmp_path: Path
) -> None:
    check_out(store, "one", out, "hardlink")
    subprocess.run(["cp", "-a", out, tmp_path / "copy"], check=True, timeout=60)
    with pytest.raises(UsageError, match="a copy of checkout"):
        find_checkout(store, tmp_path / "copy")
    out.rename(tmp_path / "moved")
    update(store, tmp_path / "moved", "two")
    assert findings(store, tmp_path / "moved") == {}
    import_directory(store, tmp_path / "moved", "again")
    make_checkout(store, what(store, "again"), tmp_path / "twice", "copy")
    assert find_checkout(store, tmp_path / "twice").number == 2, "the mark is not copied along"


def test_a_full_disk_leaves_nothing_begun(tmp_path: Path, out: Path) -> None:
    source = make_directory(tmp_path / "one")
    (source / "large").write_bytes((source / "medium").read_bytes() * 3)
    with Store.create(tmp_path / "store", **SETTINGS) as store:
        import_directory(store, source, "one")
    disk = FaultyDisk()
    with Store.open(tmp_path / "store", disk=disk) as store:
        disk.full = True
        with pytest.raises(StoreFullError):
            check_out(store, "one", out, "symlink")
        disk.full = False
        assert not out.exists()
        assert not list_numbers(store)
        collect(store)
        with store.reading() as txn:
            assert not txn.count(Table.PINS)
        check_out(store, "one", out, "symlink")
        SnapshotCatalog(store).remove(["one"])
        collect(store)
        assert (out / "large").read_bytes() == (source / "large").read_bytes()
        sound(store)


_COMMAND = """
import os, signal, sys
from pathlib import Path
from dedupfs.store import Store
from tests.checkout.places import check_out, update
calls, last = 0, int(sys.argv[3])
def tell(frame, event, argument):
    global calls
    if event == "c_call" and argument.__name__ in NAMES:
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
NAMES = {"symlink", "link", "rename", "unlink", "mkdir", "rmdir", "open", "pwrite", "setxattr"}
with Store.open(Path(sys.argv[1])) as store:
    sys.setprofile(tell)
    work = sys.argv[4]
    if work == "make":
        check_out(store, "one", Path(sys.argv[2]), "symlink")
    else:
        update(store, Path(sys.argv[2]), "two", link="hardlink")
"""


@pytest.mark.unmeasured
def test_a_killed_command_is_ended_by_the_next(store: Store, out: Path) -> None:
    """Killed at system calls all over; every name that is there then must be whole."""
    kills = 0
    for work, name in (("make", "one"), ("update", "two")):
        for call in (45, 80):
            arguments = [str(store.path), str(out), str(call), work]
            command = [sys.executable, "-c", _COMMAND, *arguments]
            ended = subprocess.run(command, check=False, timeout=120, capture_output=True)
            assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
            kills += ended.returncode != 0
            collect(store)
            if list_numbers(store) and out.exists():
                for found in out.rglob("*"):
                    assert not found.is_symlink() or found.name == "pointer" or found.exists()
                update(store, out, name)
                assert findings(store, out, full=True) == {}
                if work == "make":
                    remove(store, out)
                else:
                    update(store, out, "one", link="symlink")
            elif work == "make" and out.exists():
                out.rmdir()
        if work == "make":
            check_out(store, "one", out, "symlink")
    assert kills
