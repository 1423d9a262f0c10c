"""A mount answers every system call as a native file system does, whatever happens to it between.

Method: the same random sequence on a tmpfs and on a real mount of a real store (pair.py), by
several processes of several users with files that stay open; every result and errno, and again and
again the whole trees, must agree (tolerated.py has the exceptions). A failing seed is made short
and printed as code for test_regressions.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.posix.generator import Setting
from tests.posix.hunting import find_none, first_seed, plain_steps, steps_with_events
from tests.posix.pair import Pair, Step

pytestmark = [pytest.mark.unmeasured, pytest.mark.fuse, pytest.mark.program("fusermount3")]

AS_ROOT = Setting(processes=4, users=True)
AS_USER = Setting(processes=2)
LARGE_BYTES = 12 << 20
"""So much at once goes to a verbatim pack."""

Steps = Callable[[int, int, Setting], list[Step]]


def setting() -> Setting:
    return AS_ROOT if os.geteuid() == 0 else AS_USER


def hunt(pair: Pair, steps: Steps, seeds: int, count: int, setting: Setting) -> None:
    start = first_seed()
    for seed in range(start, start + seeds):
        print(f"{seed=} {count=} {setting}")  # noqa: T201 - shown when it fails
        find_none(pair, seed, steps(seed, count, setting))
    operations = sum(number for name, number in pair.count.items() if ":" not in name)
    print(f"{operations} steps, {dict(pair.count)}")  # noqa: T201 - the figures of a long run


def test_a_mount_answers_as_a_native_file_system(pair: Pair) -> None:
    hunt(pair, plain_steps, 2, 1000, setting())


def test_nothing_that_happens_to_a_mount_can_be_seen_in_it(pair: Pair) -> None:
    hunt(pair, steps_with_events, 3, 400, setting())


@pytest.mark.root
def test_an_ordinary_user_s_mount_answers_as_a_native_file_system(user_pair: Pair) -> None:
    hunt(user_pair, plain_steps, 1, 500, AS_USER)
    hunt(user_pair, steps_with_events, 1, 300, AS_USER)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_sixty_thousand_operations(pair: Pair) -> None:
    large = Setting(setting().processes, setting().users, LARGE_BYTES)
    hunt(pair, plain_steps, 30, 2000, large)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_forty_thousand_operations_and_what_happens_between_them(pair: Pair) -> None:
    large = Setting(setting().processes, setting().users, LARGE_BYTES)
    hunt(pair, steps_with_events, 40, 1000, large)


@pytest.mark.long
@pytest.mark.root
@pytest.mark.timeout(4 * 3600)
def test_a_hundred_thousand_operations_of_an_ordinary_user(user_pair: Pair) -> None:
    large = Setting(AS_USER.processes, AS_USER.users, LARGE_BYTES)
    hunt(user_pair, plain_steps, 30, 2000, large)
    hunt(user_pair, steps_with_events, 40, 1000, large)
