"""A native library that crashes ends the process with one line and an exit code, too.

LMDB maps the index into memory and trusts it: damaged pages make it abort, or touch memory that is
not there. Whole checks of the index at each start would cost as much as it is large, so what
happens is told where it happens. Knows no command. Source: docs/cli.md, "Exit codes";
sigaction(2), mdb.c (mdb_assert_fail).
"""

import ctypes
import os
import signal

from dedupfs.errors import StoreError

_SIGNALS = (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT)
_LIMIT_S = 10
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_libc = ctypes.CDLL(None)
_libc.signal.argtypes = [ctypes.c_int, _Handler]
_libc.signal.restype = ctypes.c_void_p


def tell_crashes() -> None:
    """Say one line and exit with a StoreError's code when the index makes a library crash.

    For a process of our own: it takes the place of whatever else handles these signals. They come
    from the very instruction that fails, so the thread that runs Python here is the one that
    was in the library, and it never goes back there.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # only the main thread may say so
    for number in _SIGNALS:
        _libc.signal(number, _handler)


def _say_and_exit(number: int) -> None:
    try:
        signal.alarm(_LIMIT_S)  # a crash in the interpreter itself may leave us waiting for ever
        name = signal.Signals(number).name
        os.write(
            2,
            f"dedupfs: the index is damaged, and crashed the library that reads it ({name}); "
            "run 'dedupfs check --repair'\n".encode(),
        )
    finally:  # to return would be to fail again, for ever
        os._exit(StoreError.exit_code)


_handler = _Handler(_say_and_exit)
