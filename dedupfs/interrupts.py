"""Ctrl-C waits until what was begun is done, or has come to a point where it can stop.

A signal handler that raises (that of Ctrl-C in a notebook, say) may do so between any two steps:
between the commit of a transaction and the note that it was committed, behind which what is taken
back would be what the index now names. So handlers are called later. Only the main thread runs
handlers, hence only it holds them back. Knows no store.
"""

import _signal  # type: ignore[import-not-found, unused-ignore]
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

# Without the enums of ``signal``, which cost more than what is done under the lock.
_handler_of: Callable[[int], Any] = _signal.getsignal
_handle: Callable[[int, Any], Any] = _signal.signal
_SIGNALS = (int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGALRM))
_ASK_S = 0.1
"""How often a thread that waits for the lock looks whether it was interrupted."""
_active: "Held | None" = None
"""The main thread's, the outermost one."""


class _Later:
    """Stands in for a handler, and notes that it is to be called.

    One that is left over, since another signal's handler raised before it could be taken away,
    passes on what comes.
    """

    __slots__ = ("came", "handler", "held")

    def __init__(self, held: "Held", handler: Callable[[int, FrameType | None], Any]) -> None:
        self.held = held
        self.handler = handler
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.held is _active:
            self.came = self.held.came = True
        else:
            self.handler(number, frame)


class Held:
    """While it is begun, or in its ``with``, no handler of the main thread's is called.

    Inside of another one it does nothing.
    """

    __slots__ = ("_replaced", "came")

    def __init__(self) -> None:
        self.came = False
        self._replaced: list[tuple[int, _Later]] = []

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end()

    def begin(self) -> None:
        """Hold signals back from now on; again does nothing."""
        global _active  # noqa: PLW0603  handlers are the process's
        if _active is not None or threading.get_ident() != threading.main_thread().ident:
            return
        self.came, self._replaced = False, []
        _active = self
        try:
            for number in _SIGNALS:
                handler = _handler_of(number)
                if isinstance(handler, _Later):
                    handler = handler.handler
                if callable(handler):
                    later = _Later(self, handler)
                    self._replaced.append((number, later))
                    _handle(number, later)
        except BaseException:  # what the handler of one that was not replaced yet has raised
            self.end()
            raise

    def end(self) -> None:
        """Have the handlers back, and call those that would have been called."""
        global _active  # noqa: PLW0603
        if _active is not self:
            return
        _active = None
        try:
            for number, later in self._replaced:
                if _handler_of(number) is later:  # else the program has set another one
                    _handle(number, later.handler)
        finally:
            if self.came:
                _call([(number, later) for number, later in self._replaced if later.came])

    def point(self) -> None:
        """Stop here, by what a handler raises, if a signal has come."""
        if self.came and _active is self:
            try:
                self.end()
            finally:
                self.begin()  # for what is done on the way out


def _call(came: list[tuple[int, _Later]]) -> None:
    """Call the handlers, all of them even if one raises."""
    number, later = came[0]
    try:
        later.handler(number, sys._getframe())
    finally:
        if came[1:]:
            _call(came[1:])


class Uninterrupted:
    """Holds ``lock``, which may be held already, and keeps signals back meanwhile."""

    def __init__(self, lock: "threading.RLock") -> None:
        self._lock = lock
        self._held: list[Held] = []
        """Of each level that holds the lock now."""

    def __enter__(self) -> None:
        held = Held()
        held.begin()
        try:
            while not self._lock.acquire(timeout=_ASK_S):
                held.point()
        except BaseException:
            held.end()
            raise
        self._held.append(held)

    def __exit__(self, *_exc: object) -> None:
        held = self._held.pop()
        self._lock.release()
        held.end()


def _handlers_back() -> None:
    """In a forked child: have the handlers back that the parent's main thread had replaced."""
    global _active  # noqa: PLW0603
    _active = None
    for number in _SIGNALS:
        handler = _handler_of(number)
        if isinstance(handler, _Later):
            _handle(number, handler.handler)


os.register_at_fork(after_in_child=_handlers_back)
