"""A view is folded when it wants to be, one fold at a time, and a failure ends nothing.

Method: trio's clock jumps to the next timer, so hours pass in no time.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

trio = pytest.importorskip("trio")
testing = pytest.importorskip("trio.testing")
pytest.importorskip("pyfuse3")

from dedupfs.errors import StoreFullError  # noqa: E402
from dedupfs.fuse.housekeeping import (  # noqa: E402
    CHECK_INTERVAL_S,
    LOOK_AGAIN_S,
    RETRY_INTERVAL_S,
    ROOM_WAIT_S,
    Housekeeper,
)
from tests.fuse.fakes import FakePlan, FakeView  # noqa: E402


async def test_it_folds_only_when_wanted(autojump_clock: object) -> None:
    view = FakeView()
    with trio.move_on_after(3600):
        await Housekeeper(view.as_view()).run()
    assert view.calls == []
    view.fold_wanted = True
    with trio.move_on_after(10):
        await Housekeeper(view.as_view()).run()
    assert view.calls == ["prepare_fold", "fold"]


@pytest.mark.allow_log("fold failed, will be tried again", "bug in fold")
@pytest.mark.parametrize("error", [StoreFullError("disk full"), ZeroDivisionError()])
async def test_a_failure_is_tried_again_later(autojump_clock: object, error: Exception) -> None:
    view = FakeView()
    view.fold_wanted = True
    view.fail_with("prepare_fold", error)
    with trio.move_on_after(RETRY_INTERVAL_S / 2):
        await Housekeeper(view.as_view()).run()
    assert view.calls == ["prepare_fold"]
    with trio.move_on_after(RETRY_INTERVAL_S * 2):
        await Housekeeper(view.as_view()).run()
    assert view.calls == ["prepare_fold", "prepare_fold", "fold"]


async def test_a_commit_waits_for_a_fold_that_is_under_way() -> None:
    view = FakeView()
    entered, go_on = threading.Event(), threading.Event()
    preparing = 0

    def slow_prepare() -> FakePlan:
        nonlocal preparing
        preparing += 1

        def work() -> bytes:
            entered.set()
            assert go_on.wait(60)
            return b""

        return FakePlan(work)

    view.prepare_fold = slow_prepare  # type: ignore[method-assign]
    keeper = Housekeeper(view.as_view())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.fold)
        await trio.to_thread.run_sync(entered.wait)
        nursery.start_soon(keeper.commit, "s", b"", {})
        await testing.wait_all_tasks_blocked()
        assert preparing == 1
        go_on.set()
    assert view.calls == ["fold", "commit"]


async def test_garbage_is_looked_for_when_the_disk_is_low(autojump_clock: object) -> None:
    view = FakeView()
    with trio.move_on_after(100):
        await Housekeeper(view.as_view()).run()
    assert view.calls == []
    view.room_low = True
    with trio.move_on_after(LOOK_AGAIN_S * 2 + LOOK_AGAIN_S / 2):
        await Housekeeper(view.as_view()).run()
    assert view.calls == ["making_room"] * 3, "and not more often"
    view.calls.clear()
    with trio.move_on_after(1000):
        await Housekeeper(view.as_view(), auto_gc=False).run()
    assert view.calls == []


async def test_a_write_on_a_full_disk_folds_and_looks_for_garbage(autojump_clock: object) -> None:
    view = FakeView()
    view.room_low = True
    keeper = Housekeeper(view.as_view())
    assert not await keeper.make_room(), "nothing came back"
    assert view.calls == ["making_room"]
    assert not await keeper.make_room(), "nor is it tried again at once"
    assert view.calls == ["making_room"]
    view.has_changes = True
    assert await keeper.make_room()
    assert view.calls == ["making_room", "prepare_fold", "fold"]
    view.has_changes = False
    view.gained_bytes = 4096
    await trio.sleep(LOOK_AGAIN_S)
    assert await keeper.make_room()


async def test_a_search_that_takes_too_long_is_gone_on_with_by_the_next_write(
    mock_clock: Any,
) -> None:
    view = FakeView()
    view.room_low = True
    entered, go_on = threading.Event(), threading.Event()

    def slow_search() -> Generator[Callable[[], object], None, int]:
        view.calls.append("making_room")
        yield entered.set
        yield lambda: go_on.wait(60)
        yield lambda: None
        return 0

    view.making_room = slow_search  # type: ignore[method-assign]
    keeper = Housekeeper(view.as_view())
    tried_again: list[bool] = []

    async def write() -> None:
        tried_again.append(await keeper.make_room())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.to_thread.run_sync(entered.wait, 60)
        mock_clock.jump(ROOM_WAIT_S + 1)
        go_on.set()
    assert tried_again == [True], "what has come back until then may be enough"
    assert not await keeper.make_room(), "nothing came back by all of it"
    assert view.calls == ["making_room"] * 2
    assert not await keeper.make_room()
    assert view.calls == ["making_room"] * 2, "and not more often"


async def test_a_write_waits_for_a_search_that_is_under_way(mock_clock: Any) -> None:
    view = FakeView()
    view.room_low = True
    entered, go_on = threading.Event(), threading.Event()

    def slow_search() -> Generator[Callable[[], object], None, int]:
        view.calls.append("making_room")
        yield entered.set
        yield lambda: go_on.wait(60)
        return 4096

    view.making_room = slow_search  # type: ignore[method-assign]
    keeper = Housekeeper(view.as_view())
    tried_again: list[bool] = []

    async def write() -> None:
        tried_again.append(await keeper.make_room())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        await testing.wait_all_tasks_blocked()
        mock_clock.jump(CHECK_INTERVAL_S)
        await trio.to_thread.run_sync(entered.wait, 60)
        async with trio.open_nursery() as writers:
            writers.start_soon(write)
            await testing.wait_all_tasks_blocked()
            go_on.set()
        nursery.cancel_scope.cancel()
    assert tried_again == [True]
    assert view.calls == ["making_room"]


async def test_a_write_waits_for_what_is_being_given_back_and_has_it_hurry(mock_clock: Any) -> None:
    """Beside it a search would find nothing: one at a time punches, and the other one does not."""
    view = FakeView()
    view.room_low = view.fold_wanted = True
    entered, go_on = threading.Event(), threading.Event()

    def give_back(*, hurried: bool = False) -> Iterator[Callable[[], object]]:
        yield entered.set
        yield lambda: go_on.wait(60)
        view.calls.append("given back")

    view.giving_back = give_back  # type: ignore[assignment]
    keeper = Housekeeper(view.as_view())
    tried_again: list[bool] = []

    async def write() -> None:
        tried_again.append(await keeper.make_room())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        await testing.wait_all_tasks_blocked()
        mock_clock.jump(CHECK_INTERVAL_S)
        await trio.to_thread.run_sync(entered.wait, 60)
        async with trio.open_nursery() as writers:
            writers.start_soon(write)
            await testing.wait_all_tasks_blocked()
            hurried = view.is_waited_for
            go_on.set()
        nursery.cancel_scope.cancel()
    assert tried_again == [True]
    assert (hurried, view.is_waited_for) == (True, False)
    assert view.calls[:3] == ["prepare_fold", "fold", "given back"]
    assert view.calls.count("making_room") == 1


async def test_a_write_that_waited_for_another_one_s_fold_is_tried_again() -> None:
    view = FakeView()
    view.has_changes = True
    entered, go_on = threading.Event(), threading.Event()

    def fold_at_last() -> bytes:
        entered.set()
        assert go_on.wait(60)
        view.has_changes = False
        return b""

    view.prepare_fold = lambda: FakePlan(fold_at_last)  # type: ignore[method-assign]
    keeper = Housekeeper(view.as_view())
    tried_again: list[bool] = []

    async def write() -> None:
        tried_again.append(await keeper.make_room())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.to_thread.run_sync(entered.wait)
        nursery.start_soon(write)
        await testing.wait_all_tasks_blocked()
        go_on.set()
    assert tried_again == [True, True]
    assert view.calls == ["fold"]
    assert not await keeper.make_room(), "there is nothing left to make room of"


async def test_a_write_does_not_wait_for_ever_for_a_commit_that_waits_for_it(
    autojump_clock: object,
) -> None:
    view = FakeView()
    held = trio.Event()
    keeper = Housekeeper(view.as_view(), held.wait)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.commit, "s", b"", {})
        await testing.wait_all_tasks_blocked()
        assert not await keeper.make_room()
        held.set()
    assert view.calls == ["prepare_fold", "commit"]
