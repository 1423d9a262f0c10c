"""Making a failing list of steps short: delta debugging. Pure; the caller runs what it is asked.

Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

S = TypeVar("S")


def shrink(steps: Sequence[S], fails: Callable[[list[S]], bool], tries_max: int = 400) -> list[S]:
    """Return a part of ``steps``, in order, that still fails and of which no single one can go.

    ``fails`` is asked at most ``tries_max`` times; then what is there so far is returned.
    """
    kept = list(steps)
    part = max(1, len(kept) // 2)
    tries = 0
    while True:
        start, shorter = 0, False
        while start < len(kept) and tries < tries_max:
            candidate = kept[:start] + kept[start + part :]
            tries += 1
            if candidate and fails(candidate):
                kept, shorter = candidate, True
            else:
                start += part
        if tries >= tries_max or (part == 1 and not shorter):
            return kept
        part = max(1, part // 2) if not shorter or part > 1 else 1
