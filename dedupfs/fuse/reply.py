"""What is around every handler: it counts, and answers an error with an errno.

Source: pyfuse3's rst/operations.rst. Knows no request. What is done here is done for every request
of the kernel, so it has to cost next to nothing.
"""

import errno
import functools
import logging
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Iterable
from time import perf_counter_ns
from typing import Any, ParamSpec, TypeVar, cast

import pyfuse3

from dedupfs.errors import (
    DedupfsError,
    FileLimitError,
    NamespaceError,
    QuotaError,
    StoreFullError,
)
from dedupfs.namespace.live import LATENCY_BOUNDS_US

log = logging.getLogger("dedupfs.fuse.operations")

P = ParamSpec("P")
R = TypeVar("R")

SAMPLE_MASK = 63
"""Of each operation one request in SAMPLE_MASK + 1 is timed: two looks at the clock and a search
cost 0.3 us, which is too much for each."""


class Tally:
    """What was asked for, how it ended, and how long some of it took; plain integers."""

    def __init__(self, operations: Iterable[str]) -> None:
        super().__init__()
        self.requests = dict.fromkeys(operations, 0)
        self.totals = {"read_bytes": 0, "written_bytes": 0, "waited_reads": 0, "failed_requests": 0}
        self.errors: dict[int, int] = {}
        """Failed requests by errno."""
        self.timed: dict[str, list[int]] = {}
        """Of each operation: nanoseconds in all, then a count for each bound and for what took
        longer than the last one."""

    def note_time(self, operation: str, begun_ns: int) -> None:
        """Count a request that began at ``begun_ns`` and ends now."""
        took_ns = perf_counter_ns() - begun_ns
        cells = self.timed.setdefault(operation, [0] * (len(LATENCY_BOUNDS_US) + 2))
        cells[0] += took_ns
        cells[1 + bisect_left(LATENCY_BOUNDS_US, took_ns / 1000)] += 1

    def note_error(self, code: int) -> None:
        """Count a request that failed."""
        self.totals["failed_requests"] += 1
        self.errors[code] = self.errors.get(code, 0) + 1


def reply(handler: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Answer the kernel with an errno whenever ``handler`` fails.

    pyfuse3 catches nothing but FUSEError: any other exception would end the whole mount.
    """

    name = handler.__name__

    @functools.wraps(handler)
    async def answered(*args: Any) -> R:
        tally = args[0]
        tally.requests[name] = count = tally.requests[name] + 1
        begun_ns = 0 if count & SAMPLE_MASK else perf_counter_ns()
        try:
            return handler(*args)  # type: ignore[call-arg]
        except pyfuse3.FUSEError:
            raise
        except Exception as exc:
            raise _failure(name, args, exc) from exc
        finally:
            if begun_ns:
                tally.note_time(name, begun_ns)

    return cast(Callable[P, Coroutine[Any, Any, R]], answered)


def reply_later(
    handler: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    """Do as ``reply`` does for a handler that may have to wait."""

    name = handler.__name__

    @functools.wraps(handler)
    async def answered(*args: P.args, **kwargs: P.kwargs) -> R:
        tally = cast(Any, args[0])
        tally.requests[name] = count = tally.requests[name] + 1
        begun_ns = 0 if count & SAMPLE_MASK else perf_counter_ns()
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as exc:
            raise _failure(name, args, exc) from exc
        finally:
            if begun_ns:
                tally.note_time(name, begun_ns)

    return answered


def _failure(op: str, args: tuple[object, ...], exc: Exception) -> pyfuse3.FUSEError:
    """Return the answer to a request that failed with ``exc``, and log what must be known."""
    failed = exc.errno if isinstance(exc, DedupfsError) else errno.EIO
    cast(Tally, args[0]).note_error(failed)
    # Ordinary, or the caller's alone; a limit is logged by who keeps it, once.
    if isinstance(exc, NamespaceError | FileLimitError | QuotaError):
        return pyfuse3.FUSEError(exc.errno)
    if isinstance(exc, StoreFullError):  # the caller is told, and every caller after it
        log.info("disk full op=%s: %s", op, exc)
        return pyfuse3.FUSEError(exc.errno)
    if isinstance(exc, DedupfsError):
        log.error("request failed op=%s errno=%d: %s", op, exc.errno, exc)
        return pyfuse3.FUSEError(exc.errno)
    log.critical("bug op=%s args=%r", op, args[1:], exc_info=exc)
    return pyfuse3.FUSEError(errno.EIO)


def traced(handler: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Log every call of ``handler``; wrapped around it only when somebody wants to see that."""

    @functools.wraps(handler)
    async def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            answer = await handler(*args, **kwargs)
        except pyfuse3.FUSEError as exc:
            log.debug("%s%.200r errno=%d", handler.__name__, args, exc.errno)
            raise
        log.debug("%s%.200r", handler.__name__, args)
        return answer

    return told
