"""The top directory of a checkout: making it, marking it, finding the checkout that it is.

The mark is an extended attribute, ``user.dedupfs.checkout``: token, number and store. It goes where
the directory goes. Knows the registry, no tree.
"""

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dedupfs.checkout.objects import HARDLINK
from dedupfs.checkout.target import ATTRIBUTE
from dedupfs.errors import NotFoundError, SourceError, UsageError
from dedupfs.format.manifest import Manifest
from dedupfs.namespace.checkouts import read_checkout, read_checkouts
from dedupfs.store import Store
from dedupfs.store.owner import close_lock, open_lock
from dedupfs.store.syscalls import clone_range
from dedupfs.transfer.metadata import drop_inherited_acls

_PROBE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Mark:
    """What the attribute of a checkout's directory says."""

    token: str
    number: int
    store: Path


def require_outside(store: Store, directory: Path) -> None:
    """Refuse a checkout in its store.

    Raises:
        UsageError: it would be.
    """
    real = Path(os.path.realpath(directory))
    root = Path(os.path.realpath(store.path))
    if real == root or root in real.parents:
        raise UsageError(f"{directory} is in the store: take a directory outside of it")


def make_top(directory: Path) -> tuple[int, bool]:
    """Make a directory, or take an empty one; return its descriptor, and whether it was made.

    Raises:
        UsageError: there is something in it. SourceError: it cannot be made.
    """
    was_made = False
    try:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            was_made = True
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise SourceError(f"cannot make {directory}: {exc.strerror}") from exc
    try:
        drop_inherited_acls(fd)
        with suppress(OSError):
            os.chmod(fd, 0o700)  # closed to others until it is complete
        if os.listdir(fd):
            raise UsageError(f"{directory} is not empty: check out to a new directory")
    except BaseException:
        os.close(fd)
        raise
    return fd, was_made


def open_top(directory: Path) -> int:
    """Open the directory of a checkout.

    Raises:
        SourceError: it cannot be opened.
    """
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise SourceError(f"cannot open {directory}: {exc.strerror}") from exc


def mark(top_fd: int, store: Store, manifest: Manifest) -> None:
    """Note on a directory which checkout it is, where the file system can keep that."""
    text = f"{manifest.token} {manifest.number} ".encode() + os.fsencode(store.path)
    with suppress(OSError):
        os.setxattr(top_fd, ATTRIBUTE, text)


def read_mark(directory: Path) -> Mark | None:
    """Return the mark of a directory, or None."""
    try:
        text = os.getxattr(directory, ATTRIBUTE)
        token, number, store = text.split(b" ", 2)
        return Mark(token.decode(), int(number), Path(os.fsdecode(store)))
    except (OSError, ValueError):
        return None


def is_there(manifest: Manifest) -> bool:
    """Whether the directory of a checkout is where it was made."""
    directory = Path(os.fsdecode(manifest.directory))
    found = read_mark(directory)
    if found is not None:
        return found.token == manifest.token
    return directory.is_dir() and not directory.is_symlink()


def find_checkout(store: Store, directory: Path) -> Manifest:
    """Return the checkout that a directory is, by its mark or by where it was made.

    Raises:
        NotFoundError: it is none of this store. UsageError: it is a copy of one.
        CorruptError: its manifest is damaged.
    """
    found = read_mark(directory)
    if found is not None:
        marked: Manifest | None = None
        with suppress(NotFoundError):
            marked = read_checkout(store, found.number)
        if marked is not None and marked.token == found.token:
            _require_no_copy(directory, marked)
            return marked
    wanted = os.fsencode(os.path.abspath(directory))
    manifests, _damaged = read_checkouts(store)
    for manifest in manifests:
        if manifest.directory == wanted and found is None:
            return manifest
    raise NotFoundError(f"{directory} is no checkout of {store.path}")


def _require_no_copy(directory: Path, manifest: Manifest) -> None:
    made = Path(os.fsdecode(manifest.directory))
    if is_there(manifest) and read_mark(made) is not None and not made.samefile(directory):
        raise UsageError(f"{directory} is a copy of checkout {manifest.number}, {made}")


def works_in(store: Store, top_fd: int, link: str) -> bool:
    """Whether hard links, or shared blocks, lead from the store to a directory: tries it."""
    token = secrets.token_hex(8)
    source = store.layout.run / f"import-probe-{token}.new"
    name = f".dedupfs-{token}.new".encode()
    file = open_lock(store.disk, source, create=True)
    try:
        store.disk.lock(file)
        if link == HARDLINK:
            os.link(source, name, dst_dir_fd=top_fd)
            return True
        store.disk.pwrite(file, [os.urandom(_PROBE_BYTES)], 0)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=top_fd)
        try:
            return clone_range(file.fd, 0, _PROBE_BYTES, fd, 0)
        finally:
            os.close(fd)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            os.unlink(name, dir_fd=top_fd)
        store.disk.unlink(source)
        close_lock(file)
