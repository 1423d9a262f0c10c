"""A lock under which Ctrl-C waits until what was begun is done.

A view journals a change and then applies it. A signal handler that raises in between (that of
Ctrl-C in a notebook, say) would leave memory behind the journal, so it is called when the change is
done. Only the main thread runs handlers.
"""

import _signal  # type: ignore[import-not-found, unused-ignore]
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

# Without the enums of ``signal``, which cost more than what is done under the lock.
_handler_of: Callable[[int], Any] = _signal.getsignal
_handle: Callable[[int, Any], Any] = _signal.signal
_SIGNALS = (int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGALRM))
_ASK_S = 0.1
"""How often a thread that waits for the lock looks whether it was interrupted."""
_Replaced = list[tuple[int, "_Later"]]


class _Later:
    """Stands in for a handler, and notes that it is to be called."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler = handler
        self.frame: FrameType | None = None
        self.came = False

    def __call__(self, _number: int, frame: FrameType | None) -> None:
        self.came, self.frame = True, frame


class Uninterrupted:
    """Holds ``lock``, which may be held already, and keeps signals back meanwhile."""

    def __init__(self, lock: "threading.RLock") -> None:
        self._lock = lock
        self._replaced: list[_Replaced] = []
        """Of each level that holds the lock now."""

    def __enter__(self) -> None:
        replaced: _Replaced = []
        if threading.get_ident() == threading.main_thread().ident:
            for number in _SIGNALS:
                handler = _handler_of(number)
                if callable(handler) and not isinstance(handler, _Later):
                    later = _Later(handler)
                    replaced.append((number, later))
                    _handle(number, later)
        while not self._lock.acquire(timeout=_ASK_S):
            if any(later.came for _, later in replaced):
                _put_back(replaced)
                return self.__enter__()
        self._replaced.append(replaced)
        return None

    def __exit__(self, *_exc: object) -> None:
        replaced = self._replaced.pop()
        self._lock.release()
        _put_back(replaced)


def _put_back(replaced: _Replaced) -> None:
    """Have the handlers back, and call those that would have been called."""
    for number, later in replaced:
        _handle(number, later.handler)
    for number, later in replaced:
        if later.came:
            later.handler(number, later.frame)


def handlers_back() -> None:
    """In a forked child: have the handlers back that another thread of the parent had replaced."""
    for number in _SIGNALS:
        handler = _handler_of(number)
        if isinstance(handler, _Later):
            _handle(number, handler.handler)
