"""Files below a directory that others may change, opened step by step, through no symbolic link."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dedupfs.errors import SourceError
from dedupfs.transfer.metadata import open_source


@contextmanager
def opened_directory(directory: Path) -> Iterator[int]:
    """Open the top of a tree.

    Raises:
        SourceError: it cannot be.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise SourceError(f"cannot read {directory}: {exc.strerror}") from exc
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def opened_below(top_fd: int, path: bytes) -> Iterator[int]:
    """Open a regular file below ``top_fd`` for reading, through no symbolic link."""
    with parent_of(top_fd, path) as (directory_fd, name), _held(directory_fd, name) as held_fd:
        fd = open_source(b"/proc/self/fd/%d" % held_fd)
        try:
            yield fd
        finally:
            os.close(fd)


@contextmanager
def _held(directory_fd: int, name: bytes) -> Iterator[int]:
    """Hold a regular file by an O_PATH descriptor.

    Raises:
        OSError: it is something else by now, or gone.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileNotFoundError("became something else meanwhile")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def parent_of(top_fd: int, path: bytes) -> Iterator[tuple[int, bytes]]:
    """Open the directory of ``path`` below ``top_fd`` step by step, through no symbolic link."""
    *steps, name = path.split(b"/")
    fd = os.dup(top_fd)
    try:
        for step in steps:
            below = os.open(
                step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
            )
            os.close(fd)
            fd = below
        yield fd, name
    finally:
        os.close(fd)
