"""Mounts for volumes: each is a supervised daemon of its own.

So they outlive the plugin, which asks the mount table which there are. ``Mounter`` is the plugin's
side, ``carry_out`` the worker's: it alone touches mounts. Knows no volume.
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dedupfs.errors import DedupfsError, MountError
from dedupfs.fuse import mountpoints
from dedupfs.namespace import live
from dedupfs.volumes.options import Options
from dedupfs.volumes.workers import Workers

log = logging.getLogger(__name__)

END_S_MAX = 1.0
"""Podman gives a plugin five seconds; a daemon that has more to put away does that alone."""


class _Mount(msgspec.Struct, frozen=True, tag="mount"):
    place: str
    options: Options
    allow_other: bool


class _Unmount(msgspec.Struct, frozen=True, tag="unmount"):
    place: str


class _Nothing(msgspec.Struct, frozen=True, tag="nothing"):
    pass


Start = Callable[[Path, Options, bool], None]
"""Mounts on a directory, for all users if true, and returns when the mount answers."""


@dataclass(frozen=True, slots=True)
class Mounter:
    """Mounts below ``directory``, for all users with ``allow_other``."""

    directory: Path
    allow_other: bool
    workers: Workers

    def place(self, name: str) -> Path:
        """Return where a volume is mounted."""
        return self.directory / name

    def is_mounted(self, name: str) -> bool:
        """Whether there is a mount, dead or alive; it is not touched."""
        found = mountpoints.mount_at(self.place(name))
        return found is not None and found.is_ours

    def settle(self, until_s: float) -> None:
        """Return when nothing that the last plugin has ordered is under way any more.

        Raises:
            MountError: that takes too long.
        """
        if not self.workers.do(msgspec.json.encode(_Nothing()), "", until_s):
            raise MountError("an earlier plugin's mounts are not settled")

    def outlast(self, name: str, until_s: float) -> bool:
        """Wait for what goes on for a volume after its answer; return whether nothing does.

        An unmount that goes on would take the mount from under whoever uses it meanwhile.
        """
        return self.workers.outlast(name, until_s)

    def ensure(self, name: str, options: Options, until_s: float) -> None:
        """Return when the volume's mount answers.

        Raises:
            DedupfsError: it cannot be mounted. MountError: not in time.
        """
        order = _Mount(os.fspath(self.place(name)), options, self.allow_other)
        if not self.workers.do(msgspec.json.encode(order), name, until_s):
            raise MountError(f"volume {name!r} is still being mounted: try again later")

    def end(self, name: str, until_s: float) -> bool:
        """Unmount, and have the daemon end; one with much to put away still does so on return.

        Returns whether that was done in time: else it goes on.

        Raises:
            MountError: it cannot be unmounted.
        """
        order = _Unmount(os.fspath(self.place(name)))
        return self.workers.do(msgspec.json.encode(order), name, until_s)

    def forget(self, name: str) -> None:
        """Remove the mount point of a volume that is not mounted.

        Raises:
            MountError: it cannot be removed.
        """
        try:
            self.place(name).rmdir()
        except FileNotFoundError:
            return
        except OSError as exc:
            raise MountError(f"cannot remove {self.place(name)}: {exc.strerror}") from exc


def carry_out(order: bytes, start: Start) -> None:
    """Do what a mounter has ordered.

    Raises:
        DedupfsError: it cannot be done.
    """
    match msgspec.json.decode(order, type=_Mount | _Unmount | _Nothing):
        case _Mount(place, options, allow_other):
            _mount(Path(place), lambda: start(Path(place), options, allow_other))
        case _Unmount(place):
            _unmount(Path(place))


def _mount(place: Path, start: Callable[[], None]) -> None:
    found = mountpoints.mount_at(place)
    if found is not None and found.is_ours and not mountpoints.is_stale(found):
        return
    _require_seen(place)
    if found is None:  # a dead mount could not be looked at; ``start`` takes it away
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise MountError(f"cannot make {place}: {exc.strerror}") from exc
    start()


def _require_seen(place: Path) -> None:
    """Refuse a mount that containers without root would not see: they would write below it.

    They live in a mount namespace that an ordinary user's engine has made before.
    """
    if os.geteuid() != 0:
        around = mountpoints.mount_containing(place.parent)
        if around is None or not around.shared:
            raise MountError(
                f"containers would not see a mount on {place}: have root run "
                f"'mount --make-rshared {around.mountpoint if around else '/'}'"
            )


def _unmount(place: Path) -> None:
    """Unmount, and leave no directory: a container would take it for the volume, and write there.

    Podman mounts no volume that it believes mounted, and that is what it believes after an unmount
    whose answer it did not wait for (libpod/volume_internal_linux.go, ``MountCount``).
    """
    _end(place)
    with suppress(OSError):  # it is not empty, say: whose that is, nobody knows
        place.rmdir()


def _end(place: Path) -> None:
    """Unmount, and end a daemon that goes on because a mount namespace has a copy of its mount.

    Some container that is given all of ``/``, say. As long as the daemon has the view, nobody
    else can mount it.
    """
    found = mountpoints.mount_at(place)
    if found is None or not found.is_ours:
        return
    if mountpoints.is_stale(found):
        mountpoints.clear_stale(place)
        return
    daemon = live.daemon_at(Path(found.source), place)
    if daemon is None:
        mountpoints.unmount(place)
        return
    end = live.ProcessEnd(daemon.running.pid)
    try:
        try:
            mountpoints.write_back(place)  # with a copy elsewhere, unmounting does not
        except DedupfsError as exc:  # a volume can be removed on a full disk, too
            log.warning("what the kernel keeps may be lost mountpoint=%s: %s", place, exc)
        mountpoints.unmount(place)
        if not end.wait(END_S_MAX):
            stop(daemon)
            end.wait(END_S_MAX)
    finally:
        end.close()


def stop(daemon: live.Daemon) -> None:
    """Have a daemon end whose mount is gone from here."""
    try:
        live.ask(daemon.socket_path, live.Stop(), timeout_s=END_S_MAX)
    except DedupfsError as exc:  # it is about to end, and answers nobody
        log.info("unmounted, not ended yet pid=%d: %s", daemon.running.pid, exc)
