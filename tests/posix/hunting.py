"""Looking for differences: seeds in, and for the first that fails a short list of steps as code."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

from tests.posix.events import Commit, Compare, Fold, Kill, MoveToSnapshot, OtherView, Remount
from tests.posix.generator import Generator, Setting
from tests.posix.pair import Difference, Pair, Step
from tests.posix.shrinking import shrink

COMPARE_EVERY = 100
EVENT_CHANCE = 0.012
SHRINK_TRIES = 300


def first_seed() -> int:
    """Return where to begin: always the same in continuous integration, random elsewhere."""
    return 1 if os.environ.get("CI") == "true" else random.SystemRandom().randrange(1 << 32)


def plain_steps(seed: int, count: int, setting: Setting) -> list[Step]:
    """Return ``count`` operations with comparisons of everything between them."""
    steps: list[Step] = []
    for index, operation in enumerate(Generator(seed, setting).operations(count)):
        if index % COMPARE_EVERY == 0:
            steps.append(Compare())
        steps.append(operation)
    return steps


def steps_with_events(seed: int, count: int, setting: Setting) -> list[Step]:
    """Return ``count`` operations, and what happens to the mount between them."""
    chooser = random.Random(seed)
    steps: list[Step] = []
    for index, step in enumerate(plain_steps(seed, count, setting)):
        steps.append(step)
        if chooser.random() < EVENT_CHANCE:
            events: list[Step] = [
                Fold(),
                Commit(f"kept-{index}"),
                MoveToSnapshot(f"base-{index}"),
                Remount(),
                Kill(),
                OtherView(),
            ]
            steps.append(chooser.choice(events))
    return steps


def find_none(pair: Pair, seed: int, steps: Sequence[Step]) -> None:
    """Run the steps; where native system and mount differ, fail with as few steps as do it."""
    found = pair.run(steps)
    if found is not None:
        raise AssertionError(report(pair, seed, steps, found))


def report(pair: Pair, seed: int, steps: Sequence[Step], found: Difference) -> str:
    def fails(candidate: list[Step]) -> bool:
        again = pair.run(candidate)
        return again is not None and type(again.step) is type(found.step)

    tried = list(steps[: found.index + 1])
    few = shrink(tried, fails, SHRINK_TRIES) if fails(tried) else tried
    code = "".join(f"    {step!r},\n" for step in few)
    return f"seed {seed}: {found.step!r}\n{found.text}\nsteps = [\n{code}]"
