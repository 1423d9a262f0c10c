"""Races that happen every time: a hook of the interpreter swaps a name right before a system call.

``sys.audit`` tells of each os.open before the kernel hears of it, so what a lucky attacker does in
between is done here for certain. A hook cannot be removed: there is one, which serves what is
armed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OnOpen = Callable[[bytes, int], None]
_armed: list[OnOpen] = []
_installed: list[bool] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not _armed:
        return
    path, _mode, flags = arguments
    if isinstance(path, str | bytes) and isinstance(flags, int):
        for action in _armed:
            action(os.fsencode(path), flags)


@contextmanager
def before_open(name: bytes, swap: Callable[[], None], number: int = 1) -> Iterator[list[int]]:
    """Run ``swap`` before ``name`` is opened for the ``number``th time; yield the opens' flags."""
    seen: list[int] = []

    def action(path: bytes, flags: int) -> None:
        if path == name:
            seen.append(flags)
            if len(seen) == number:
                swap()

    with every_open(action):
        yield seen


@contextmanager
def every_open(action: OnOpen) -> Iterator[None]:
    """Call ``action`` with path and flags before each open."""
    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)
    _armed.append(action)
    try:
        yield
    finally:
        _armed.remove(action)
