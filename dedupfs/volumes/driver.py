"""What the volume plugin does: volumes are made, mounted for their users, and removed.

A volume is mounted as long as it has users; its count is of a mount, and goes with it (at a reboot,
say). Calls for one volume come one after the other, those for several at once. In what order things
become durable:

- create: that it is being made and under which number, then the view, then that it is done. Cut
  short, it is taken back: the view of that number, unless somebody has written into it meanwhile.
- mount: the mount, then its user. In between a mount without users is left; ``recover`` ends it.
- unmount: the user goes, then the mount: the same. The last one's mount goes even if that cannot be
  written: users of what is not mounted count for nothing.
- remove: that it is being removed, then the view goes, then the volume. Cut short, it is finished.

Source: Docker, "Docker volume plugins" (docs.docker.com/engine/extend/plugins_volume).
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from dedupfs.errors import (
    DedupfsError,
    ExistsError,
    MountError,
    NotFoundError,
    StoreBusyError,
    StoreFullError,
    UsageError,
)
from dedupfs.namespace import live
from dedupfs.namespace.lifecycle import make_numbered, reserve_number
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.views import find_view, remove_numbered_view, view_owner
from dedupfs.store.store import Store
from dedupfs.volumes import options as volume_options
from dedupfs.volumes.ledger import USERS_MAX, Ledger, Volume
from dedupfs.volumes.mounts import Mounter, stop
from dedupfs.volumes.options import Options, ParseSize

log = logging.getLogger(__name__)

USER_CHARACTERS_MAX = 256
MOUNT_S_MAX = 110.0
UNMOUNT_S_MAX = 50.0
"""Docker waits two minutes for a mount, one for its end (volume/drivers/proxy.go) ..."""
START_S = 10.0
"""... and this much of them is left to a mount that waits for the last one's daemon."""
DAEMON_STEP_S = 0.05


class Driver:
    """The volumes of some stores. May be called by several threads."""

    def __init__(
        self, stores: Sequence[Path], ledger: Ledger, mounter: Mounter, parse_size: ParseSize
    ) -> None:
        self._stores = stores
        self._ledger = ledger
        self._mounter = mounter
        self._parse_size = parse_size
        self._ledger_lock = threading.Lock()
        self._store_lock = threading.Lock()  # LMDB: a process has an index open once
        self._volume_locks: weakref.WeakValueDictionary[str, threading.Lock] = (
            weakref.WeakValueDictionary()
        )

    def recover(self) -> None:
        """Find out what the last plugin, or the machine's last boot, has left."""
        volumes = self._ledger.all()
        if volumes:
            self._mounter.settle(_within(MOUNT_S_MAX))
        until_s = _within(UNMOUNT_S_MAX)  # for all: nobody is answered before
        for volume in volumes:
            try:
                self._recover(volume, until_s)
            except DedupfsError as exc:  # one volume's trouble, or a full disk, is not the others'
                log.warning("not put in order volume=%s: %s", volume.name, exc)

    def _recover(self, volume: Volume, until_s: float) -> None:
        if volume.pending:
            self._recover_pending(volume, until_s)
        elif not self._mounter.is_mounted(volume.name):
            if volume.users:
                log.info("not mounted any more volume=%s", volume.name)
                self._set_users(volume, ())
        elif not volume.users:
            log.info("mounted for nobody volume=%s", volume.name)
            if not self._end(volume.name, until_s):
                raise _still_busy(volume.name)

    def _recover_pending(self, volume: Volume, until_s: float) -> None:
        log.info("only begun volume=%s pending=%s", volume.name, volume.pending)
        # It may be mounted: it was used again instead of being removed.
        if not self._end(volume.name, until_s):
            raise _still_busy(volume.name)
        try:
            self._finish(volume)
        except StoreBusyError:
            if volume.pending == "removed":  # somebody has begun to use its view: he keeps it
                self._put(msgspec.structs.replace(volume, pending=""))
            raise

    def create(self, name: str, words: Mapping[str, str]) -> None:
        """Make a volume, and its view if that does not exist.

        Raises:
            UsageError, ExistsError, NotFoundError, DedupfsError: it cannot be made; nothing was.
        """
        wanted = volume_options.parse(name, words, self._stores, self._parse_size)
        with self._volume_lock(name):
            there = self._ledger.get(name)
            if there is not None and there.pending:
                self._finish(there)
            elif there is not None:
                if there.options == wanted:
                    return
                raise ExistsError(f"volume {name!r} exists, with other options")
            with self._store_lock, Store.open(Path(wanted.store)) as store:
                if self._prepare(store, wanted):
                    self._make(store, Volume(name, wanted, time.time_ns(), reserve_number(store)))
                else:
                    self._add(Volume(name, wanted, time.time_ns()))

    def _make(self, store: Store, volume: Volume) -> None:
        """Make a volume with the view that it has a number for."""
        wanted = volume.options
        making = msgspec.structs.replace(volume, pending="made")
        self._add(making)
        try:
            make_numbered(store, wanted.view, wanted.snapshot, volume.view_id, wanted.limit_bytes)
            self._put(volume if wanted.is_own else msgspec.structs.replace(volume, view_id=0))
        except DedupfsError:
            with suppress(DedupfsError):  # the first failure is the one to tell
                self._end_view(store, making)
                self._forget(volume.name)
            raise

    def remove(self, name: str) -> None:
        """Remove a volume that nobody uses, with the view that was made for it.

        Raises:
            NotFoundError: no such volume. StoreBusyError: somebody uses it.
        """
        until_s = _within(UNMOUNT_S_MAX)
        with self._volume_lock(name):
            volume = self._volume(name)
            self._outlast_workers(name, until_s)
            mounted = self._mounter.is_mounted(name)
            if mounted and volume.users:
                raise StoreBusyError(
                    f"volume {name!r} is in use by {len(volume.users)} container(s); if there are "
                    f"none, run 'dedupfs umount {self._mounter.place(name)}'"
                )
            if mounted and not self._mounter.end(name, until_s):
                raise _still_busy(name)
            self._mounter.forget(name)
            self._outlast(volume, until_s)
            if volume.view_id and not volume.pending:
                self._remove_with_view(volume)
            else:
                self._finish(volume)

    def _remove_with_view(self, volume: Volume) -> None:
        removing = msgspec.structs.replace(volume, users=(), pending="removed")
        try:
            self._put(removing)
        except StoreFullError as exc:  # on a full disk, too, things can be deleted
            log.warning("being removed without a note volume=%s: %s", volume.name, exc)
        try:
            self._finish(removing)
        except DedupfsError:
            if self._ledger.get(volume.name) == removing:
                with suppress(DedupfsError):  # the first failure is the one to tell
                    self._put(volume)
            raise

    def _finish(self, volume: Volume) -> None:
        """Let a volume go that nobody uses: one that goes, or whose making was cut short."""
        if volume.view_id:
            with self._store_lock, Store.open(Path(volume.options.store)) as store:
                self._end_view(store, volume)
        self._forget(volume.name)

    def _end_view(self, store: Store, volume: Volume) -> None:
        view, number = volume.options.view, volume.view_id
        is_new = volume.pending == "made"
        if not remove_numbered_view(store, view, number, only_unused=is_new):
            log.warning(
                "somebody has written into the view of a volume that was never made, and keeps it "
                "volume=%s view=%s store=%s",
                *(volume.name, view, volume.options.store),
            )

    def mount(self, name: str, user: str) -> Path:
        """Mount a volume for ``user``; return where.

        Raises:
            NotFoundError: no such volume. MountError, DedupfsError: it cannot be mounted.
        """
        _check_user(user)
        until_s = _within(MOUNT_S_MAX)
        with self._volume_lock(name):
            volume = self._volume(name)
            if volume.pending == "made":
                raise NotFoundError(f"volume {name!r} was only begun: create it again")
            self._outlast_workers(name, until_s - START_S)
            if volume.users and not self._mounter.is_mounted(name):
                volume = self._set_users(volume, ())  # first: the mount may come late, or we die
            users = volume.users
            if user not in users and len(users) >= USERS_MAX:
                raise UsageError(f"volume {name!r} has {USERS_MAX:,} users already")
            self._require_view(volume)
            self._outlast(volume, until_s - START_S)
            self._mounter.ensure(name, volume.options, until_s)
            try:
                if user not in users:
                    self._set_users(volume, (*users, user))
            except DedupfsError:
                if not users:
                    with suppress(MountError):  # the first failure is the one to tell
                        self._mounter.end(name, until_s)
                raise
            return self._mounter.place(name)

    def unmount(self, name: str, user: str) -> None:
        """Let ``user`` go; with the last one goes the mount, which may take longer than this.

        Who is told that it failed takes the volume for mounted (Podman), or never asks again
        (Docker); the next mount waits for it.

        Raises:
            NotFoundError: no such volume. MountError: it cannot be unmounted now; say it again.
        """
        _check_user(user)
        until_s = _within(UNMOUNT_S_MAX)
        with self._volume_lock(name):
            volume = self._volume(name)
            users = tuple(other for other in volume.users if other != user)
            if users != volume.users:
                try:
                    self._set_users(volume, users)
                except DedupfsError as exc:
                    if users:
                        raise
                    # They are users of a mount, and that goes: Docker would not ask again.
                    log.warning("its last user is still written down volume=%s: %s", name, exc)
            if not users and not self._end(name, until_s):
                log.warning("still being unmounted volume=%s", name)

    def _end(self, name: str, until_s: float) -> bool:
        """Unmount if need be; return whether that was done in time."""
        if not self._mounter.outlast(name, until_s):
            return False
        return not self._mounter.is_mounted(name) or self._mounter.end(name, until_s)

    def get(self, name: str) -> tuple[Volume, Path | None]:
        """Return a volume and where it is mounted, without touching the mount.

        Raises:
            NotFoundError: no such volume.
        """
        return self._with_place(self._volume(name))

    def list(self) -> list[tuple[Volume, Path | None]]:
        """Return all volumes and where they are mounted, sorted by name."""
        return [self._with_place(volume) for volume in self._ledger.all()]

    def _with_place(self, volume: Volume) -> tuple[Volume, Path | None]:
        mounted = self._mounter.is_mounted(volume.name)
        return volume, self._mounter.place(volume.name) if mounted else None

    def _volume(self, name: str) -> Volume:
        volume = self._ledger.get(name)
        if volume is None:
            raise NotFoundError(f"no volume {name[:255]!r}")
        return volume

    def _volume_lock(self, name: str) -> threading.Lock:
        with self._ledger_lock:
            return self._volume_locks.setdefault(name, threading.Lock())

    def _add(self, volume: Volume) -> None:
        with self._ledger_lock:
            self._require_unused(volume.options)
            self._ledger.put(volume)

    def _put(self, volume: Volume) -> None:
        with self._ledger_lock:
            self._ledger.put(volume)

    def _forget(self, name: str) -> None:
        with self._ledger_lock:
            self._ledger.remove(name)

    def _set_users(self, volume: Volume, users: tuple[str, ...]) -> Volume:
        changed = msgspec.structs.replace(volume, users=users, pending="")
        self._put(changed)
        return changed

    def _require_unused(self, wanted: Options) -> None:
        """Refuse a second volume of one view: a view has one mount."""
        for volume in self._ledger.all():
            same_store = volume.options.store == wanted.store
            if wanted.view and same_store and volume.options.view == wanted.view:
                raise ExistsError(
                    f"view {wanted.view!r} is volume {volume.name!r}: give containers that one"
                )

    def _prepare(self, store: Store, wanted: Options) -> bool:
        """Refuse what cannot be; return whether its view is to be made."""
        if not wanted.view:
            if wanted.snapshot:
                SnapshotCatalog(store).get(wanted.snapshot)
            return False
        row = find_view(store, wanted.view)
        if row is None:
            with self._ledger_lock:
                self._require_unused(wanted)
            if wanted.snapshot:  # looked up now: later it may change its name
                SnapshotCatalog(store).get(wanted.snapshot)
            return True
        if wanted.is_own:
            raise ExistsError(
                f"there is a view {row.name!r} in {store.path}: say view={row.name} to use it, "
                "which also keeps it when the volume is removed"
            )
        if wanted.snapshot and row.base != wanted.snapshot:
            raise UsageError(f"view {row.name!r} was not made over {wanted.snapshot!r}")
        if wanted.limit_bytes is not None:
            raise UsageError("limit= is for a new view; for this one there is 'dedupfs limit'")
        return False

    def _require_view(self, volume: Volume) -> None:
        """Refuse to mount what would be made anew, and empty."""
        if not volume.options.view:
            return
        with self._store_lock, Store.open(Path(volume.options.store)) as store:
            row = find_view(store, volume.options.view)
        if row is None or volume.view_id not in (0, row.view_id):
            raise NotFoundError(
                f"the view {volume.options.view!r} of volume {volume.name!r} is gone from "
                f"{volume.options.store}: remove the volume"
            )

    def _outlast_workers(self, name: str, until_s: float) -> None:
        if not self._mounter.outlast(name, until_s):
            raise _still_busy(name)

    def _outlast(self, volume: Volume, until_s: float) -> None:
        """Wait until the daemon of the volume's last mount has put the view away.

        Anybody else's is not waited for: who needs the view then says who has it.
        """
        place = self._mounter.place(volume.name)
        if not volume.options.view or self._mounter.is_mounted(volume.name):
            return
        path = Path(volume.options.store)
        is_asked = False
        while time.monotonic() < until_s:
            with self._store_lock, Store.open(path) as store:
                owner = view_owner(store, volume.options.view)
            if owner is None or owner.mountpoint != os.fspath(place):
                return
            if not is_asked:  # its mount may live on in some container's mount namespace
                is_asked = True
                with suppress(DedupfsError):
                    daemon = live.daemon_of_view(path, volume.options.view)
                    if daemon is not None:
                        stop(daemon)
            time.sleep(DAEMON_STEP_S)


def _within(seconds: float) -> float:
    return time.monotonic() + seconds


def _still_busy(name: str) -> MountError:
    return MountError(f"volume {name!r} is still being mounted or unmounted: try again later")


def _check_user(user: str) -> None:
    if not user or len(user) > USER_CHARACTERS_MAX or not user.isprintable():
        raise UsageError("a mount needs an ID of 1 to 256 printable characters")
