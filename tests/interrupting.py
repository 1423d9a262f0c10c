"""SIGINT at a chosen line of dedupfs, for tests of what Ctrl-C leaves behind."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import dedupfs

PACKAGE = str(Path(dedupfs.__file__).parent) + "/"


class At:
    """Sends SIGINT to this process before line ``number`` of those in ``files`` that are run."""

    def __init__(self, number: int, files: tuple[str, ...] = ("",)) -> None:
        self.left = number
        self._files = tuple(PACKAGE + file for file in files)

    def __enter__(self) -> At:
        self.old = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_exc: object) -> None:
        sys.settrace(self.old)

    def _trace(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self._files):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self._trace


def interrupted(
    number: int, call: Callable[[], object], files: tuple[str, ...] = ("",)
) -> bool | None:
    """Call with Ctrl-C at a line; say whether it raised, None when there was no such line."""
    with At(number, files) as at:
        try:
            call()
        except KeyboardInterrupt:
            return True
    return False if at.left <= 0 else None
