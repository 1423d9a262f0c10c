"""Which volumes there are, and who uses each: one file, written anew at each change.

A crash between any two calls leaves the file as it was before or after a change. Knows neither
stores nor mounts. One process owns a state directory; the kernel lets go of it when that dies.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

import msgspec

from dedupfs.errors import CorruptError, StoreBusyError, StoreError, StoreFullError
from dedupfs.volumes.options import Options

VERSION = 1
FILE_NAME = "volumes.json"
LOCK_NAME = "lock"
VOLUMES_MAX = 10_000
USERS_MAX = 10_000


class Volume(msgspec.Struct, frozen=True):
    """A volume. ``users``: the ids of those who have it mounted, as they call themselves.

    ``view_id``: number of the view that was made for it and goes with it; 0 if there is none.
    ``pending``: whether it is just being made (then ``view_id`` is that of the view to be made in
    any case) or removed; a plugin that finds it so finishes what another one had begun.
    """

    name: str
    options: Options
    created_ns: int
    view_id: int = 0
    users: tuple[str, ...] = ()
    pending: Literal["", "made", "removed"] = ""


class _File(msgspec.Struct, frozen=True):
    version: int
    volumes: list[Volume]


class Ledger:
    """The volumes by name. ``put`` and ``remove`` return when the change is on disk."""

    def __init__(self, directory: Path, lock: int, volumes: dict[str, Volume]) -> None:
        self.directory = directory
        self._lock = lock
        self._volumes = volumes

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Own the state in ``directory``, which is made if need be.

        Raises:
            StoreBusyError: another process does. CorruptError: the file is none of ours.
            StoreError: it cannot be read or made.
        """
        with _translated(directory):
            # Container runtimes walk through as users that a user namespace maps.
            directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(lock)
            raise StoreBusyError(f"another volume plugin has its state in {directory}") from exc
        try:
            return cls(directory, lock, {volume.name: volume for volume in _read(directory)})
        except BaseException:
            os.close(lock)
            raise

    def get(self, name: str) -> Volume | None:
        """Return the volume called ``name``, or None."""
        return self._volumes.get(name)

    def all(self) -> list[Volume]:
        """Return all volumes, sorted by name."""
        return sorted(self._volumes.values(), key=lambda volume: volume.name)

    def put(self, volume: Volume) -> None:
        """Add a volume, or replace the one of its name."""
        self._replace({**self._volumes, volume.name: volume})

    def remove(self, name: str) -> None:
        """Forget a volume."""
        self._replace({key: value for key, value in self._volumes.items() if key != name})

    def close(self) -> None:
        """Let another process own the state."""
        os.close(self._lock)

    def _replace(self, volumes: dict[str, Volume]) -> None:
        if len(volumes) > VOLUMES_MAX:
            raise StoreError(f"{VOLUMES_MAX:,} volumes are the most: remove some first")
        data = msgspec.json.encode(_File(VERSION, list(volumes.values())))
        path = self.directory / FILE_NAME
        new = path.with_suffix(".new")
        with _translated(path):
            with open(new, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(new, path)
            directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._volumes = volumes  # what is there now, even if it cannot be synced
            try:
                os.fsync(directory)
            finally:
                os.close(directory)


def _read(directory: Path) -> list[Volume]:
    path = directory / FILE_NAME
    with _translated(path):
        if not path.exists():
            return []
        data = path.read_bytes()
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CorruptError(
            f"{path} is damaged: put it back from a backup, or move it away and make its volumes "
            f"anew, with view= for each view that 'dedupfs view list' shows: {exc}"
        ) from exc
    if file.version != VERSION:
        raise StoreError(f"{path} has version {file.version}; this dedupfs knows {VERSION}")
    return file.volumes


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
        failed = StoreFullError if full else StoreError
        raise failed(f"cannot keep the volumes in {path}: {exc.strerror}") from exc
