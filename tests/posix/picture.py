"""The operation that looks at everything: a whole tree as values that two roots must agree on."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tests.posix.operation import Failed, Operation, Outcome, Place, described

R = TypeVar("R")
_WHOLE_BYTES_MAX = 32 << 20
_SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True, repr=False)
class Picture(Operation):
    """Names, attributes, extended attributes, targets and bytes of all that is below ``top``."""

    top: bytes = b"."

    def run(self, place: Place) -> Outcome:
        return {path[len(self.top) :]: node for path, node in _below(self.top)}


def _below(path: bytes) -> Iterator[tuple[bytes, Outcome]]:
    found = os.lstat(path)
    yield path, (described(found), _xattrs(path), _content(path, found))
    if stat.S_ISDIR(found.st_mode):
        listed = _tried(lambda: sorted(os.listdir(path)))
        if isinstance(listed, Failed):
            yield path + b"/", listed
            return
        for name in listed:
            yield from _below(path + b"/" + name)


def _tried(call: Callable[[], R]) -> R | Failed:
    """An ordinary user cannot look everywhere; that he cannot must be alike, too."""
    try:
        return call()
    except OSError as exc:
        return Failed(errno.errorcode[exc.errno or 0])


def _xattrs(path: bytes) -> Outcome:
    names = _tried(lambda: sorted(os.listxattr(path, follow_symlinks=False)))
    if isinstance(names, Failed):
        return names
    return {
        name: _tried(lambda name=name: os.getxattr(path, name, follow_symlinks=False))  # type: ignore[misc]
        for name in names
    }


def _content(path: bytes, found: os.stat_result) -> Outcome:
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path)
    if stat.S_ISREG(found.st_mode):
        return _tried(lambda: _digest(path, found.st_size))
    return None


def _digest(path: bytes, size: int) -> Outcome:
    """Digest the bytes; of a huge sparse file its ends and samples between them."""
    digest = hashlib.blake2b(digest_size=16)
    file = os.open(path, os.O_RDONLY)
    try:
        if size <= _WHOLE_BYTES_MAX:
            while part := os.read(file, 1 << 20):
                digest.update(part)
        else:
            for step in range(33):
                offset = min(size * step // 32, size - _SAMPLE_BYTES)
                digest.update(os.pread(file, _SAMPLE_BYTES, offset))
    finally:
        os.close(file)
    return digest.hexdigest()
