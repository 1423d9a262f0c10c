"""Signals while a run whose command has succeeded makes its snapshot.

The command's work is done, so the first one only has the user told what is going on; a second one
stops it, and once the snapshot is made one ends what is left to do. An exit code of 0 says that
there is a snapshot, and nothing else does. Knows no store. Specified in docs/cli.md, "run".
"""

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress

from dedupfs.errors import DedupfsError

STOPPED = 128
_HEEDED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_STOPPING = (signal.SIGINT, signal.SIGTERM)
_THE_COMMANDS = (signal.SIGUSR1, signal.SIGUSR2)


class UncommittedError(DedupfsError):
    """There is no snapshot of what a command wrote."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Ending:
    """What signals do to this process from ``begin`` on."""

    def __init__(self, name: str, stop: Callable[[], None]) -> None:
        self._name = name
        self.stop: Callable[[], None] | None = stop
        """Called in the handler, once; taken away when there is nothing to stop any more."""
        self.stopped_by: signal.Signals | None = None
        self._count = 0
        self._is_made = False

    def begin(self, mask: Iterable[int]) -> None:
        """Hear what was held back until now, with ``mask`` from here on; what is ignored stays so.

        SIGQUIT goes on to end the process at once.
        """
        for number in _THE_COMMANDS:
            signal.signal(number, signal.SIG_IGN)
        for number in _HEEDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._came)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _came(self, number: int, _frame: object) -> None:
        self._count += 1
        if self._count == 1:
            if self._is_made:
                _say(f"{self._name} was made; once more leaves what is left to be removed")
            elif self.stop is not None:
                _say(f"{self._name} is being made; once more stops that")
        elif number in _STOPPING:
            if self._is_made:
                os._exit(0)
            stop, self.stop = self.stop, None
            if stop is not None:
                self.stopped_by = signal.Signals(number)
                stop()

    def made(self) -> None:
        """There is the snapshot, and nothing more that could fail: tell whoever has asked."""
        self._is_made = True
        if self._count:
            _say(f"{self._name} was made")

    def failed(self, exc: BaseException, is_made: Callable[[str], bool]) -> BaseException | None:
        """Say what to raise; None if the snapshot was made when it was stopped."""
        if self.stopped_by is None:
            return exc
        code = STOPPED + self.stopped_by
        stopped = f"stopped by {self.stopped_by.name}"
        try:
            if is_made(self._name):
                return None
        except DedupfsError as unknown:
            return UncommittedError(
                f"{stopped}; whether there is a snapshot {self._name} cannot be told: {unknown}",
                code,
            )
        return UncommittedError(f"{stopped}: there is no snapshot {self._name}", code)

    def told(self) -> None:
        """Why there is none is told, and what is kept: signals end this process again."""
        for number in _HEEDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)


def _say(text: str) -> None:
    """Write a line; a handler may run in the middle of a print."""
    with suppress(OSError):  # nobody listens
        os.write(2, f"dedupfs: {text}\n".encode(errors="backslashreplace"))


def interrupt() -> None:
    """Stop what this process itself does: where nothing may be interrupted, behind that."""
    raise KeyboardInterrupt
