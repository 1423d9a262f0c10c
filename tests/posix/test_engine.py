"""The differential test would find a difference, and make it short.

Method: the generator, the comparer and the shrinker alone; and a pair whose mount is disturbed.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.posix.attributes import Stat
from tests.posix.comparing import Matching, difference
from tests.posix.contents import Data, Write
from tests.posix.events import Compare
from tests.posix.generator import Generator, Setting
from tests.posix.hunting import plain_steps, report
from tests.posix.names import Mkdir, Symlink
from tests.posix.operation import Failed, Inode, OutsideError, Place, perform, stays_inside
from tests.posix.pair import WORK, Pair, Step
from tests.posix.shrinking import shrink
from tests.posix.tolerated import TOLERANCES

pytestmark = pytest.mark.unmeasured


def test_a_seed_always_means_the_same_operations() -> None:
    setting = Setting(processes=4, users=True)
    first = list(Generator(7, setting).operations(500))
    assert first == list(Generator(7, setting).operations(500))
    assert first != list(Generator(8, setting).operations(500))
    assert len({type(operation) for operation in first}) > 30


def test_no_operation_leaves_its_root() -> None:
    for path in (b"/etc", b"../d", b"./..", b"a/../..", b"a/../b/../c"):
        with pytest.raises(OutsideError):
            perform(Mkdir(path), Place(-1))
    for goal in (b".", b"..", b"/etc", b"a/.."):
        assert not stays_inside(Symlink(goal, b"l"))
    for seed in range(60):
        for operation in Generator(seed, Setting(processes=4, users=True)).operations(1000):
            assert stays_inside(operation)


def test_an_operation_is_printed_as_code() -> None:
    operation = Write(3, Data(5, 100), who=1, watch=(b"a" * 200,))
    assert repr(operation) == "Write(who=1, watch=(b'a' * 200,), 3, Data(seed=5, length=100))"


@pytest.mark.parametrize(
    ("native", "mount"),
    [
        (None, Failed("EIO")),
        (b"abc", b"abd"),
        ([1, 2], [1]),
        ({b"a": 1}, {b"b": 1}),
        ((Inode(1), Inode(1)), (Inode(5), Inode(6))),
        ((Inode(1), Inode(2)), (Inode(5), Inode(5))),
    ],
)
def test_different_outcomes_differ(native: object, mount: object) -> None:
    assert difference(native, mount, Matching()) is not None


def test_inode_numbers_are_equal_up_to_their_names() -> None:
    matching = Matching()
    assert difference([Inode(1), Inode(2)], [Inode(7), Inode(8)], matching) is None
    assert difference(Inode(1), Inode(7), matching) is None
    assert difference(Inode(3), Inode(7), matching) is not None


def test_shrinking_leaves_what_is_needed_in_order() -> None:
    asked = 0

    def fails(steps: list[int]) -> bool:
        nonlocal asked
        asked += 1
        return [step for step in steps if step in (17, 60, 61)] == [17, 60, 61]

    assert shrink(range(100), fails) == [17, 60, 61]
    assert asked < 200
    assert len(shrink(range(100), fails, tries_max=3)) > 3


def test_every_tolerance_has_its_reason() -> None:
    assert len({tolerance.reason for tolerance in TOLERANCES}) == len(TOLERANCES) == 3


@dataclass(frozen=True)
class Disturb:
    """A file comes into the mount alone."""

    def happen(self, pair: Pair) -> str | None:
        (pair.mounted.path / pair.top.decode() / WORK.decode() / "only-here").touch()
        return None


@pytest.mark.fuse
def test_a_planted_difference_is_found_and_made_short(pair: Pair) -> None:
    steps: list[Step] = [*plain_steps(1, 50, Setting()), Disturb(), Mkdir(b"d"), Compare()]
    found = pair.run(steps)
    assert found is not None
    assert "only-here" in found.text
    said = report(pair, 1, steps, found)
    assert said.endswith("steps = [\n    Disturb(),\n    Compare(),\n]")


@pytest.mark.fuse
def test_a_lost_answer_of_an_operation_is_found(pair: Pair) -> None:
    steps: list[Step] = [Mkdir(b"d"), Stat(b"d"), Disturb(), Stat(b"only-here")]
    found = pair.run(steps)
    assert found is not None
    assert found.index == 3
    assert "ENOENT" in found.text
