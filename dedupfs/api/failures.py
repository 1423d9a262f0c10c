"""Errors as Python programs expect them: a dedupfs error that is a built-in one, too.

``except FileNotFoundError`` and ``except dedupfs.errors.NotFoundError`` both catch that a name is
not there. The layers below raise the plain classes, since to them an OSError is what the kernel
said; here each is given its second base. An errno that has no class of its own makes an OSError;
a bad argument, a ValueError.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from dedupfs.errors import DedupfsError, UsageError

P = ParamSpec("P")
R = TypeVar("R")


class _Told:
    """What makes an error's text, and its copy in another process, the same as the plain one's."""

    plain: type[DedupfsError]
    args: tuple[object, ...]

    def __str__(self) -> str:
        return str(self.args[-1])

    def __reduce__(self) -> tuple[object, ...]:
        return told, (self.plain, str(self))


_made: dict[type[DedupfsError], type[DedupfsError]] = {}


def _class_of(plain: type[DedupfsError]) -> type[DedupfsError]:
    found = _made.get(plain)
    if found is None:
        builtin = ValueError if issubclass(plain, UsageError) else type(OSError(plain.errno, ""))
        names = {"plain": plain, "__module__": plain.__module__, "__doc__": plain.__doc__}
        found = _made[plain] = type(plain.__name__, (_Told, plain, builtin), names)
    return found


def told(plain: type[DedupfsError], message: str) -> DedupfsError:
    """Return the error that the public interface raises in place of ``plain``."""
    made = _class_of(plain)
    return made(message) if issubclass(plain, UsageError) else made(plain.errno, message)


@contextmanager
def telling() -> Iterator[None]:
    """Raise the errors of the body as the public interface does."""
    try:
        yield
    except DedupfsError as exc:
        if isinstance(exc, _Told):
            raise
        raise told(type(exc), str(exc)) from exc


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function raise its errors as the public interface does."""

    @functools.wraps(function)
    def telling_its_errors(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except DedupfsError as exc:
            if isinstance(exc, _Told):
                raise
            raise told(type(exc), str(exc)) from exc

    return telling_its_errors


def public_generator(function: Callable[P, Iterator[R]]) -> Callable[P, Iterator[R]]:
    """As ``public``, for what yields."""

    @functools.wraps(function)
    def telling_its_errors(*args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        with telling():
            yield from function(*args, **kwargs)

    return telling_its_errors
