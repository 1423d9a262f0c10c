"""A FUSE connection: how it is mounted, handed to pyfuse3, tuned and ended.

The seam between dedupfs and pyfuse3's session; knows no view and no store. It mounts by itself and
gives libfuse the open device, because then an error has a name, and because only mount(2) can say
MS_POSIXACL. Source: libfuse's lib/fuse_lowlevel.c (a mount point ``/dev/fd/N`` is an open device)
and lib/mount.c, util/fusermount.c, Linux fs/fuse/inode.c.
"""

import array
import functools
import logging
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pyfuse3
import trio

from dedupfs.errors import MountError
from dedupfs.fuse import mountpoints
from dedupfs.fuse.device import MountFlags, mount_device, open_device, raise_limits
from dedupfs.fuse.handshake import Handshake, can_resend
from dedupfs.fuse.mountpoints import MountBusyError
from dedupfs.fuse.waiting import WORKERS_KEPT, Waiter, can_replace
from dedupfs.store import memory

log = logging.getLogger(__name__)

QUIET_S_MAX = 5.0
"""Under a storm of requests no moment is quiet; what had to arrive has by then."""

_RECEIVE_BYTES = WORKERS_KEPT + 1 << 20
"""Memory for libfuse's buffers of 1 MiB, one for each task that reads. When a daemon is killed
while the kernel copies a request to a page that is not there yet, the request fails with EIO and
is not kept for the next daemon (fs/fuse/dev.c, fuse_dev_do_read): so the pages are there before."""


def prepare_mountpoint(mountpoint: Path, store_path: Path) -> Path:
    """Return the resolved mount point, cleared of dead mounts.

    Raises:
        MountError: it is missing, no directory, already a live mount of dedupfs, or it and the
            store lie in each other, which would make the daemon wait for itself.
    """
    resolved = Path(os.path.realpath(mountpoint))
    cleared = mountpoints.clear_stale(resolved)
    if cleared:
        log.warning("dead mount taken away mountpoint=%s count=%d", resolved, cleared)
    try:
        is_directory = resolved.is_dir()
        exists = is_directory or resolved.exists()
    except OSError as exc:
        raise MountError(f"cannot look at {mountpoint}: {exc.strerror}") from exc
    if not exists:
        raise MountError(f"{mountpoint} does not exist: make the directory first")
    if not is_directory:
        raise MountError(f"{mountpoint} is not a directory")
    store = Path(os.path.realpath(store_path))
    if resolved.is_relative_to(store) or store.is_relative_to(resolved):
        raise MountError(
            f"the mount point {mountpoint} and the store {store_path} must not lie in each other"
        )
    return resolved


class Pace(Protocol):
    """What a session asks its operations while it waits for requests."""

    def is_idle(self) -> bool:
        """Whether no request waits for a thread."""
        ...

    def answered(self) -> None:
        """The last request that was dealt with without an await has its answer."""
        ...

    def can_see_requests(self, has_request: Callable[[], bool]) -> None:
        """``has_request`` says whether the kernel has a request that nobody has taken."""
        ...

    def can_keep_listings(self, keep_listing: Callable[[], None]) -> None:
        """``keep_listing`` may be called in a handler of opendir, which then awaits nothing."""
        ...


class Session:
    """A mounted connection that pyfuse3 serves; one per process, since pyfuse3 has one."""

    def __init__(self, mountpoint: Path, device: int, *, is_private: bool = False) -> None:
        """``device`` becomes libfuse's descriptor of the connection; pyfuse3 closes it.

        ``is_private``: the mount is in another mount namespace, and its maker takes care of it.
        """
        self.mountpoint = mountpoint
        self.device = device
        self._is_private = is_private
        self._handshake: Handshake | None = None
        self._waiter: Waiter | None = None

    @property
    def has_cached_writes(self) -> bool:
        """Whether the kernel keeps writes in its page cache; known before it is answered."""
        return self._handshake is not None and self._handshake.has_cached_writes

    @property
    def agreed_flags(self) -> int:
        """The flags that the kernel and the handshake agreed on; 0 without one."""
        return self._handshake.flags if self._handshake is not None else 0

    @classmethod
    def mount(
        cls,
        operations: pyfuse3.Operations,
        mountpoint: Path,
        source: Path,
        flags: MountFlags,
        *,
        pace: "Pace | None" = None,
    ) -> "Session":
        """Mount on a prepared mount point; ``source`` is what the mount table shows as device.

        With ``pace`` (here and in ``attach``) the session makes its own handshake and spins before
        it parks, where this pyfuse3 lets it; without, it is plain pyfuse3.

        Raises:
            MountError: in words that say what to do.
        """
        as_root = os.geteuid() == 0
        mount = mount_device if as_root else _mount_as_user
        device = mount(mountpoint, os.fsencode(source), flags)
        try:
            return cls._started(operations, cls(mountpoint, device), flags, pace)
        except MountError:
            mountpoints.unmount(mountpoint, lazy=True)
            raise

    @classmethod
    def attach(
        cls,
        operations: pyfuse3.Operations,
        mountpoint: Path,
        device: int,
        flags: MountFlags,
        *,
        pace: "Pace | None" = None,
    ) -> "Session":
        """Serve a new mount that somebody has made in a mount namespace of its own.

        Raises:
            MountError: libfuse refused.
        """
        session = cls(mountpoint, device, is_private=True)
        return cls._started(operations, session, flags, pace)

    @staticmethod
    def _started(
        operations: pyfuse3.Operations,
        session: "Session",
        flags: MountFlags,
        pace: "Pace | None",
    ) -> "Session":
        if pace is not None and can_replace():
            session._handshake = Handshake(session.device, cached_writes=flags.cached_writes)
        session._begin(operations, pace)
        return session

    @classmethod
    def resume(
        cls,
        operations: pyfuse3.Operations,
        mountpoint: Path,
        device: int,
        init_request: bytes,
        pace: "Pace",
        *,
        cached_writes: bool,
        is_private: bool = False,
    ) -> "Session":
        """Go on with a connection whose daemon died; the kernel sends again what is unanswered.

        ``cached_writes``: what that daemon agreed on.

        Raises:
            MountError: libfuse refused.
        """
        if not can_replace():
            raise MountError("this pyfuse3 cannot take a connection over")
        session = cls(mountpoint, device, is_private=is_private)
        session._handshake = Handshake(device, init_request, cached_writes=cached_writes)
        session._begin(operations, pace)
        return session

    def _begin(self, operations: pyfuse3.Operations, pace: "Pace | None") -> None:
        if self._handshake is not None:
            self.device = self._handshake.session_fd
        memory.keep_freed()
        memory.touch_ahead(_RECEIVE_BYTES)
        try:
            pyfuse3.init(operations, f"/dev/fd/{self.device}", set())
        except RuntimeError as exc:
            if self._handshake is not None:
                self._handshake.close()
            os.close(self.device)
            raise MountError(f"libfuse refused the session: {exc}") from exc
        if self._handshake is not None and pace is not None:
            self._waiter = Waiter(self.device, pace.is_idle, pace.answered)
            self._waiter.install(before=self._handshake.finish)
            pace.can_keep_listings(self._waiter.keep_listing)
            pace.can_see_requests(self._waiter.has_request)

    @property
    def init_request(self) -> bytes:
        """The kernel's INIT, if another daemon can go on with it when this one dies."""
        if self._handshake is None or not can_resend(self._handshake.request):
            return b""
        return self._handshake.request

    async def serve(self) -> None:
        """Answer requests until the mount is gone or ``stop`` was called."""
        await pyfuse3.main(min_tasks=WORKERS_KEPT)

    async def unmount(self) -> None:
        """Take the mount away while requests are answered: the kernel may want pages written first.

        What it keeps of files that are still open arrives before they lose the connection. That is
        asked for in any case: a container whose namespace has a copy of the mount does not make
        this one busy.

        Raises:
            MountError: not possible.
        """
        if self._is_private:
            return  # what is mounted there for us is another one
        mount = mountpoints.mount_at(self.mountpoint)
        if mount is None or not mount.is_ours:
            return  # somebody was quicker
        await self._write_back()
        try:
            await trio.to_thread.run_sync(mountpoints.unmount, self.mountpoint)
        except MountBusyError:
            log.warning("mount still in use, detached mountpoint=%s", self.mountpoint)
            detach = functools.partial(mountpoints.unmount, self.mountpoint, lazy=True)
            await trio.to_thread.run_sync(detach)

    async def _write_back(self) -> None:
        try:
            await trio.to_thread.run_sync(mountpoints.write_back_outside, self.mountpoint)
        except MountError as exc:
            log.error("what the kernel kept may be lost: %s", exc)
        await self.quiet()

    def stop(self) -> None:
        """End ``serve`` even if the kernel keeps the connection for files that are still open."""
        pyfuse3.terminate()

    def close(self) -> None:
        """Close the device, without unmounting."""
        if self._waiter is not None:
            self._waiter.remove()
        pyfuse3.close(unmount=False)

    async def quiet(self) -> None:
        """Wait until all requests that the kernel had ready are answered, or for a few seconds.

        So whatever syncfs(2) has made the kernel hand over has arrived: it waits for the writes of
        FUSE in some kernels alone (Linux 6.16 to 6.18). They follow each other into the queue of
        the device, each at the latest when an earlier one is answered.
        """
        if self._waiter is not None:
            with trio.move_on_after(QUIET_S_MAX):
                await self._waiter.quiet()

    def raise_limits(self) -> None:
        """Let the kernel ask for more at once; only after the INIT reply, which lowers it again."""
        if not self._is_private:
            raise_limits(self.mountpoint)


def _mount_as_user(mountpoint: Path, source: bytes, flags: MountFlags) -> int:
    if flags.labels:  # libfuse, util/fusermount.c: it refuses them
        raise MountError(f"cannot mount on {mountpoint}: {flags.labels} is for root alone")
    os.close(open_device())  # fusermount3's own message does not say what to do
    options = ["default_permissions", "noatime", f"subtype={mountpoints.SUBTYPE}"]
    options += ["allow_other"] if flags.allow_other else []
    options += ["ro"] if flags.read_only else []
    options += ["noexec"] if flags.no_exec else []
    options.append(f"fsname={_escape(os.fsdecode(source))}")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        said = mountpoints.fusermount(
            "-o", ",".join(options), "--", os.fspath(mountpoint), channel=theirs.fileno()
        )
        if said is not None:
            raise MountError(f"cannot mount on {mountpoint}: {said}")
        _, ancillary, _, _ = ours.recvmsg(
            1, socket.CMSG_LEN(struct.calcsize("i")), socket.MSG_CMSG_CLOEXEC
        )
    descriptors = array.array("i")
    for _level, _type, data in ancillary:
        descriptors.frombytes(data)
    if not descriptors:
        raise MountError(f"cannot mount on {mountpoint}: fusermount3 handed no device over")
    return descriptors[0]


def _escape(value: str) -> str:
    """Escape a mount option's value for fusermount3."""
    return value.replace("\\", "\\\\").replace(",", "\\,")
