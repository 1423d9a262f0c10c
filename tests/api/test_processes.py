"""Threads, forks, several objects on one store, and what the interface costs to import."""

from __future__ import annotations

import gc
import os
import pickle
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

import dedupfs
from dedupfs.api.opened import open_shared
from dedupfs.api.reading import SnapshotFile
from dedupfs.maintenance.check import check
from dedupfs.store import Store as CoreStore
from dedupfs.store.holes import PUNCH_LOCK
from dedupfs.store.owner import exclusive
from tests.api.conftest import BIG

CHILD_LIMIT_S = 60


def in_child(body: object) -> int:
    """Run ``body`` in a forked child; return 0 when it raised nothing."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()  # type: ignore[operator]
            code = 0
        except BaseException as exc:  # noqa: BLE001  there is nobody above us
            os.write(2, f"in the child: {exc!r}\n".encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_goes_on_with_the_store_and_the_parent_too(
    store: dedupfs.Store, one: dedupfs.Snapshot, tmp_path: Path
) -> None:
    raw = cast(SnapshotFile, one.open("a/b/big", "rb", 0))
    buffered = one.open("a/b/big")
    assert raw.pread(10, 5) == BIG[5:15]
    assert buffered.read(7) == BIG[:7]

    def child() -> None:
        assert raw.pread(10, 6) == BIG[6:16]
        assert buffered.read(7) == BIG[7:14]
        assert one.ls("a") == store["one"].ls("a") == ["b", "link", "x.txt"]
        with dedupfs.Store.open(store.path) as second, second.view(f"v{os.getpid()}") as view:
            view.write_bytes("made", BIG[1:])
            view.commit(f"by-{os.getpid()}", tags={"parent": os.getppid()})
        assert in_child(grandchild) == 0
        store.import_tree(tmp_path / "src", f"import-{os.getpid()}")
        assert store.gc().freed_bytes >= 0
        raw.close()
        buffered.close()
        store.close()
        gc.collect()
        with pytest.raises(ValueError, match="closed"):
            one.ls()

    def grandchild() -> None:
        assert raw.pread(10, 7) == BIG[7:17]
        assert len(store) > 1

    for _ in range(3):
        assert in_child(child) == 0
        assert in_child(gc.collect) == 0
        assert one.ls("a") == ["b", "link", "x.txt"]
        assert raw.pread(10, 5) == BIG[5:15]
    assert buffered.read() == BIG[7:]
    raw.close()
    buffered.close()
    made = [store[name] for name in store if name.startswith("by-")]
    assert [one.tags for one in made] == [{"parent": str(os.getpid())}] * 3
    assert all(one.read_bytes("made") == BIG[1:] for one in made)


def test_a_child_keeps_what_it_reads_and_no_lock_of_its_parent(store: dedupfs.Store) -> None:
    """The child lives on while the parent closes its view, removes the snapshot and collects."""
    file = store["one"].open("a/b/big", "rb", 0)
    assert file.read(5) == BIG[:5]
    view = store.view("v", snapshot="one")
    ready, go_on = os.pipe(), os.pipe()

    def child() -> None:
        assert file.read(5) == BIG[5:10]
        os.write(ready[1], b"1")
        os.close(go_on[1])
        assert os.read(go_on[0], 1) == b"1"
        assert file.read() == BIG[10:]
        with pytest.raises(FileNotFoundError):
            store["one"]

    pid = os.fork()
    if pid == 0:
        os._exit(in_child(child))
    os.close(ready[1])
    assert os.read(ready[0], 1) == b"1"
    view.close()
    store.view("v").close()  # the child has not kept the lock
    store.remove_view("v")
    file.close()
    store["one"].remove()
    store.gc()
    os.write(go_on[1], b"1")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for fd in (ready[0], *go_on):
        os.close(fd)
    assert store.gc().freed_bytes > len(BIG) // 2


def test_a_child_that_lives_on_keeps_no_lock_of_the_store(store: dedupfs.Store) -> None:
    """Neither that of gc, nor that of the pack that is appended to."""
    core = store._opened.core
    with store.view("v") as view:
        view.write_bytes("file", BIG)
        view.commit("two")
        packs = sorted(core.layout.packs.rglob("*.pack"))
        with exclusive(core.layout, core.disk, PUNCH_LOCK):
            pid, end = forked_until_told()
    with exclusive(core.layout, core.disk, PUNCH_LOCK, wait=False) as mine:
        assert mine
    path = store.path
    store.close()
    with dedupfs.Store.open(path) as again:
        with again.view("v") as view:
            view.write_bytes("other", BIG[1:20_000])
            view.commit("three")
        assert sorted(core.layout.packs.rglob("*.pack")) == packs
        os.close(end)
        assert os.waitpid(pid, 0)[1] == 0
        assert again.check() == []
    store._shared = open_shared(path)  # for the fixture


def forked_until_told() -> tuple[int, int]:
    """Fork a child that lives until the descriptor is closed; return both."""
    told, end = os.pipe()
    here, says = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end)
        os.write(says, b"1")
        os.read(told, 1)
        os._exit(0)
    assert os.read(here, 1) == b"1"
    for fd in (told, here, says):
        os.close(fd)
    return pid, end


def test_a_spawned_process_opens_what_it_is_sent(
    store: dedupfs.Store, one: dedupfs.Snapshot
) -> None:
    sent = pickle.dumps(one)
    program = (
        "import pickle, sys; one = pickle.load(sys.stdin.buffer); print(one.read_text('a/link'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=sent, stdout=subprocess.PIPE, check=True, timeout=120
    )
    assert done.stdout == b"hello\n\n"


def test_a_view_stays_with_the_process_that_opened_it(store: dedupfs.Store) -> None:
    with store.view("v", snapshot="one") as view, view.open("new", "wb") as file:
        file.write(b"buffered")

        def child() -> None:
            for call in (view.ls, lambda: view.write_bytes("x", b""), file.flush):
                with pytest.raises(ValueError, match="in a forked process"):
                    call()
            assert store.gc().freed_bytes >= 0
            view.close()

        assert in_child(child) == 0
        file.write(b" and more")
        file.flush()
        assert view.read_bytes("new") == b"buffered and more"


def test_threads_read_write_and_list_at_once(store: dedupfs.Store, one: dedupfs.Snapshot) -> None:
    raw = cast(SnapshotFile, one.open("a/b/big", "rb", 0))
    start = threading.Barrier(6)

    def read(number: int) -> None:
        rng = random.Random(number)
        start.wait(CHILD_LIMIT_S)
        for _ in range(60):
            where = rng.randrange(len(BIG))
            assert raw.pread(20_000, where) == BIG[where : where + 20_000]
            assert one.stat("to-a/x.txt").size == 6

    def write(number: int) -> None:
        start.wait(CHILD_LIMIT_S)
        for turn in range(10):
            data = BIG[number * 1000 : number * 1000 + turn * 30_000]
            view.write_bytes(f"{number}-{turn}", data)
            assert view.read_bytes(f"{number}-{turn}") == data
        view.commit(f"by-{number}")

    with store.scratch(snapshot="one") as view, ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(read, number) for number in range(3)]
        jobs += [pool.submit(write, number) for number in range(3)]
        for job in jobs:
            job.result(CHILD_LIMIT_S)
    raw.close()
    assert len(store) == 4


def test_any_number_of_objects_share_one_open_store(store: dedupfs.Store) -> None:
    with dedupfs.Store.open(store.path) as second, dedupfs.Store.open(str(store.path)) as third:
        assert list(second) == list(third) == ["one"]
        snapshot = second["one"]
    with pytest.raises(ValueError, match="closed"):
        second.snapshots()
    assert store["one"] == snapshot
    assert snapshot not in {store["one"].clone("two")}
    again = pickle.loads(pickle.dumps(store))
    assert list(again) == ["one", "two"]
    again.close()


def test_the_last_close_lets_go_of_everything(tmp_path: Path) -> None:
    store = dedupfs.Store.create(tmp_path / "store")
    view = store.view("v")
    view.write_bytes("file", BIG)
    view.commit("s")
    file = store["s"].open("file")
    store.close()
    store.close()
    for call in (view.ls, lambda: store["s"], file.read):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert list((tmp_path / "store" / "run").glob("????????????????.lock")) == []
    with CoreStore.open(tmp_path / "store") as core:
        assert check(core).ok


def test_who_forgets_to_close_is_told(tmp_path: Path) -> None:
    path = tmp_path / "store"
    dedupfs.Store.create(path).close()
    kept = dedupfs.Store.open(path)
    with pytest.warns(ResourceWarning, match="unclosed <View 'v' of "):
        forget_view(kept)
    with pytest.warns(ResourceWarning, match="unclosed <Store "):
        dedupfs.Store.open(path)
    gc.collect()
    with kept.view("v") as view:  # the lock of the one that was forgotten is gone
        view.write_bytes("file", b"1")
        view.commit("one")
    again = pickle.loads(pickle.dumps(kept["one"]))
    assert again.read_bytes("file") == b"1"
    del again  # tells nothing: who got it has no store to close
    kept.close()


def forget_view(store: dedupfs.Store) -> None:
    """Open a view, and forget it."""
    store.view("v").mkdir("d")


def test_what_is_no_store_is_refused_as_programs_expect(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no store"):
        dedupfs.Store.open(tmp_path / "nope")
    with pytest.raises(ValueError, match=r"not a (dedupfs )?store"):
        dedupfs.Store.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file"):
        dedupfs.Store.create(tmp_path / "file")


def test_a_problem_of_an_import_is_told_or_raised(store: dedupfs.Store, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        store.import_tree(tmp_path / "src", "one")
    with pytest.raises(dedupfs.errors.SourceError):
        store.import_tree(tmp_path / "nowhere", "two")
    made = store.import_tree(tmp_path / "src", "two", exclude=["*.txt", "/empty/"])
    assert made.ls() == ["a", "hard", "out", "round", "to-a", "up"]
    assert made.ls("a") == ["b", "link"]


def test_a_prune_keeps_what_its_rules_say(store: dedupfs.Store) -> None:
    for step, loss in enumerate([3.0, 1.0, 2.0, 0.5]):
        store["one"].clone(f"step-{step}").tag(loss=loss)
    planned = store.prune("step-*", keep_best="loss:min=2", dry_run=True)
    assert len(store) == 5
    done = store.prune("step-*", keep_best="loss:min=2")
    assert (planned.removed, planned.kept) == (done.removed, done.kept)
    assert sorted(done.removed) == ["step-0", "step-2"]
    assert sorted(done.kept) == ["step-1", "step-3"]
    assert list(store) == ["one", "step-1", "step-3"]
    for wrong in ({"keep_best": "loss"}, {"keep_within": "soon"}, {}):
        with pytest.raises(ValueError, match=r"."):
            store.prune(**wrong)  # type: ignore[arg-type]


def test_importing_dedupfs_or_its_command_line_loads_nothing_heavy() -> None:
    program = """
import sys
import dedupfs
print(sorted(name for name in sys.modules if name.startswith("dedupfs")))
import dedupfs.cli.app
assert not {"lmdb", "xxhash", "dedupfs.api", "fsspec"} & set(sys.modules)
dedupfs.Store
assert "dedupfs.api" in sys.modules
assert not {"click", "rich", "trio", "pyfuse3", "fsspec", "dedupfs.maintenance.gc"} & (
    set(sys.modules) - before
)
""".replace("import dedupfs.cli.app\n", "import dedupfs.cli.app\nbefore = set(sys.modules)\n")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['dedupfs']\n"
    with pytest.raises(AttributeError, match="nothing"):
        dedupfs.nothing  # noqa: B018
    assert {"Store", "Snapshot", "View", "errors"} <= set(dir(dedupfs))


def test_a_full_disk_ends_neither_reading_nor_the_giving_up_of_what_was_read(
    store: dedupfs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store["one"].clone("two").tag(n=2)
    assert store["one"].read_bytes("a/x.txt") == b"hello\n"
    gc.collect()

    def full() -> None:
        raise dedupfs.errors.StoreFullError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store._opened.core, "transaction", full)
        assert store["one"].read_bytes("a/b/big") == BIG
        store._opened.let_go()
        assert store["two"].read_bytes("a/x.txt") == b"hello\n"
    assert store.gc().freed_bytes >= 0
    store["one"].remove()
    store["two"].remove()
    assert store.gc().freed_bytes > len(BIG) // 2
