"""Ctrl-C ends no change of a view half-way, wherever it comes.

Method: one call after the other on a view, each with SIGINT at some line of dedupfs that it runs:
at the first, at the one some lines further on, and so on to the end. Afterwards the call has had
its effect or none, and what memory says is what the journal says.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

import dedupfs
from dedupfs import interrupts
from tests.api.conftest import BIG
from tests.api.test_processes import in_child
from tests.conftest import Scale
from tests.interrupting import interrupted

pytestmark = pytest.mark.unmeasured  # it traces by itself


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Have Python's own handler, which a program that a shell starts with "&" has not."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


STRIDE = 23
LIMIT_S = 60
Names = list[tuple[str, list[str], list[str]]]


Step = tuple[Callable[[dedupfs.View], object], Callable[[dedupfs.View], object]]
STEPS: dict[str, Step] = {
    "mkdir": (lambda v: v.mkdir("new"), lambda v: v.rmdir("new")),
    "rename": (lambda v: v.rename("a", "z"), lambda v: v.rename("z", "a")),
    "remove": (lambda v: v.remove("hard"), lambda v: v.link("a/x.txt", "hard")),
    "symlink": (lambda v: v.symlink("a", "new"), lambda v: v.remove("new")),
    "xattr": (lambda v: v.setxattr("a", "user.k", b"1"), lambda v: v.removexattr("a", "user.k")),
    "fold": (lambda v: (v.chmod("a", 0o700), v.fold()), lambda v: v.chmod("a", 0o755)),
}


@pytest.mark.parametrize("name", list(STEPS))
def test_a_change_is_made_as_a_whole_or_not_at_all(name: str, store: dedupfs.Store) -> None:
    do, undo = STEPS[name]
    with store.view("v", snapshot="one") as view:
        before = _state(view)
        do(view)
        after = _state(view)
        undo(view)
        number = 1
        while interrupted(number, lambda: do(view)) is not None:
            found = _state(view)
            if name == "fold":  # two calls, of which the first may be all
                assert found in (before, after)
            elif found == after:
                undo(view)
            else:
                assert found == before, f"{number=}"
            number += STRIDE
        assert number > STRIDE
        kept = _state(view)
    with store.view("v") as view:
        assert _state(view) == kept
        view.commit("made")


def test_an_interrupted_commit_has_made_its_snapshot_or_none(store: dedupfs.Store) -> None:
    def commit() -> None:
        view.write_bytes("file", BIG[:20_000])
        view.commit("made")

    with store.view("v") as view:
        number = 1
        while interrupted(number, commit) is not None:
            if "made" in store:
                assert store["made"].read_bytes("file") == BIG[:20_000]
                store["made"].remove()
            number += 20 * STRIDE
        assert number > 20 * STRIDE
        assert store["made"].read_bytes("file") == BIG[:20_000]


def test_an_interrupted_import_leaves_nothing_behind(store: dedupfs.Store, tmp_path: Path) -> None:
    """What it took down with it, once: threads that read ahead, descriptors, committed packs."""
    source = tmp_path / "src"
    before = set(threading.enumerate())  # of another test's, one may be just ending
    run = str(store.path / "run" / "import")
    came = {True: 0, False: 0}
    for turn in range(12):
        (source / "a" / "b" / "big").write_bytes(random.Random(turn).randbytes(len(BIG)))
        (source / "new").write_bytes(BIG[turn : turn + 5000])
        found = interrupted(1 + turn * 150, lambda: store.import_tree(source, "made"))
        assert found is not None
        came[found] += 1
        assert set(threading.enumerate()) <= before
        assert not [path for path in _open_paths() if path.startswith((str(source), run))]
        if "made" in store:
            store["made"].remove()
        again = store.import_tree(source, "again")
        assert again.read_bytes("new") == BIG[turn : turn + 5000]
        assert again.read_bytes("a/b/big") == (source / "a" / "b" / "big").read_bytes()
        again.remove()
    assert came[True] > 8


def test_an_interrupted_gc_gives_up_what_was_held_once(store: dedupfs.Store) -> None:
    """What was given up already cannot be given up again: every later read would fail."""
    number = 1
    while True:
        assert store["one"].read_text("a/x.txt") == "hello\n"  # which holds the snapshot
        if interrupted(number, store.gc, ("api/opened.py", "store/committer.py")) is None:
            break
        store.gc()
        number += 3
    assert number > 30


# Python drops what is raised while it collects an object; the program has not asked for anything.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_moment_of_anything_leaves_a_store_to_go_on_with(
    store: dedupfs.Store, tmp_path: Path, scale: Scale
) -> None:
    seed = 1 if os.environ.get("CI") == "true" else random.randrange(1 << 32)
    print(f"{seed=}")  # noqa: T201  to repeat it
    rng = random.Random(seed)
    source = tmp_path / "src"

    def work() -> None:
        store.import_tree(source, "made")
        with store.scratch(snapshot="made") as view:
            view.write_bytes("x", BIG[: rng.randrange(300_000)])
            view.commit("from-view")
        store.prune("made", "from-view", keep_last=1, allow_empty=True)

    for turn in range(scale(6, 60)):
        (source / "a" / "b" / "big").write_bytes(rng.randbytes(len(BIG)))
        over = threading.Event()
        sender = threading.Thread(target=_interrupt, args=(rng.random() * 0.4, over))
        try:
            try:
                sender.start()
                work()
            finally:
                over.set()
                sender.join()
        except KeyboardInterrupt:
            pass
        for name in ("made", "from-view"):
            if name in store:
                store[name].remove()
        store.import_tree(source, "made")
        assert store["made"].read_bytes("a/b/big") == (source / "a" / "b" / "big").read_bytes()
        store["made"].remove()
        if turn % 5 == 0:
            store.gc()
            assert store.check() == []


def _interrupt(after_s: float, over: threading.Event) -> None:
    if not over.wait(after_s):
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_all_called_though_the_first_one_raises(store: dedupfs.Store) -> None:
    came: list[int] = []
    old = signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    try:
        with store.scratch() as view:

            def both() -> None:
                with view._opened.changing:
                    signal.raise_signal(signal.SIGINT)
                    signal.raise_signal(signal.SIGTERM)

            with pytest.raises(KeyboardInterrupt):
                both()
            assert came == [signal.SIGTERM]
            with view._opened.changing:  # the program's own, set meanwhile, stays
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, old)


def test_a_handler_that_raises_while_others_are_replaced_swallows_none_of_them() -> None:
    """SIGTERM comes, and raises, when SIGINT's handler is replaced already, or not back yet."""

    def stop(_number: int, _frame: object) -> None:
        raise SystemExit

    old = signal.signal(signal.SIGTERM, stop)
    real = interrupts._handle
    try:
        for raising in (1, 2, 4, 5):  # the calls that replace, then those that put back
            calls = 0

            def handle(number: int, handler: object, raising: int = raising) -> object:
                nonlocal calls
                calls += 1
                done = real(number, handler)
                if calls == raising:
                    signal.raise_signal(signal.SIGTERM)
                return done

            interrupts._handle = handle
            with suppress(SystemExit), interrupts.Held():
                pass
            interrupts._handle = real
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(SystemExit):
                signal.raise_signal(signal.SIGTERM)
            with interrupts.Held():
                pass
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        interrupts._handle = real
        signal.signal(signal.SIGTERM, old)


def test_a_handler_that_raises_nothing_is_called_once_in_the_end(store: dedupfs.Store) -> None:
    came: list[int] = []
    old = signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    try:
        with store.scratch() as view, view._opened.changing:
            signal.raise_signal(signal.SIGTERM)
            view.mkdir("a")
            assert came == []
        assert came == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, old)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12
def test_a_forked_child_has_its_handlers_whoever_was_under_the_lock(store: dedupfs.Store) -> None:
    def child() -> None:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert store["one"].ls("a/b") == ["big"]

    with store.scratch() as view, view._opened.changing, ThreadPoolExecutor(1) as pool:
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert pool.submit(in_child, child).result(LIMIT_S) == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _open_paths() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


def _state(view: dedupfs.View) -> tuple[Names, list[str]]:
    return list(view.walk()), view.listxattr("a" if view.exists("a") else "z")
