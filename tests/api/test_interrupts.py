"""Ctrl-C ends no change of a view half-way, wherever it comes.

Method: one call after the other on a view, each with SIGINT at some line of dedupfs that it runs:
at the first, at the one some lines further on, and so on to the end. Afterwards the call has had
its effect or none, and what memory says is what the journal says.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import dedupfs
from tests.api.conftest import BIG
from tests.api.test_processes import in_child

pytestmark = pytest.mark.unmeasured  # it traces by itself


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Have Python's own handler, which a program that a shell starts with "&" has not."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


STRIDE = 23
LIMIT_S = 60
PACKAGE = str(Path(dedupfs.__file__).parent)
Names = list[tuple[str, list[str], list[str]]]


class At:
    """Sends SIGINT to this process before line ``number`` of those that the body runs."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __enter__(self) -> At:
        self.old = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_exc: object) -> None:
        sys.settrace(self.old)

    def _trace(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self._trace


def interrupted(number: int, call: Callable[[], object]) -> bool:
    """Call with Ctrl-C at a line; return whether there was such a line."""
    with At(number) as at:
        try:
            call()
        except KeyboardInterrupt:
            return True
    return at.left <= 0


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
        while interrupted(number, lambda: do(view)):
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
        while interrupted(number, commit):
            if "made" in store:
                assert store["made"].read_bytes("file") == BIG[:20_000]
                store["made"].remove()
            number += 20 * STRIDE
        assert number > 20 * STRIDE
        assert store["made"].read_bytes("file") == BIG[:20_000]


def test_a_handler_that_raises_nothing_is_called_once_in_the_end(store: dedupfs.Store) -> None:
    came: list[int] = []
    old = signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    try:
        with store.scratch() as view, view.opened.changing:
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

    with store.scratch() as view, view.opened.changing, ThreadPoolExecutor(1) as pool:
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert pool.submit(in_child, child).result(LIMIT_S) == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _state(view: dedupfs.View) -> tuple[Names, list[str]]:
    return list(view.walk()), view.listxattr("a" if view.exists("a") else "z")
