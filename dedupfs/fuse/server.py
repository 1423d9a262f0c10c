"""The life of a mount: open, mount, serve, and end in order.

Puts store, view, session, housekeeping and control socket together; knows no request and no
command line. It never touches its own mount: that would make the process wait for itself.

Order of the end, whoever asks for it (umount(8), a signal, the control socket): the mount goes, the
last requests are answered, the view folds and lets go of its lock, the store closes. After a crash
the mount stays as it is: an empty directory in its place would look like deleted files to a backup.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from dedupfs.errors import DedupfsError, MountError
from dedupfs.fuse.control import ControlServer
from dedupfs.fuse.housekeeping import Housekeeper
from dedupfs.fuse.operations import Operations
from dedupfs.fuse.session import MountFlags, Session, prepare_mountpoint
from dedupfs.namespace import live
from dedupfs.namespace.view import View
from dedupfs.namespace.views import remove_dead_ephemeral
from dedupfs.store.store import Store

log = logging.getLogger(__name__)

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What is mounted, and how. ``ephemeral`` and ``read_only`` mounts have no view to name."""

    view: str = "default"
    snapshot: str | None = None
    ephemeral: bool = False
    read_only: bool = False
    allow_other: bool = False

    @property
    def stem(self) -> str:
        """Name, without suffix, of this mount's files in the run directory; for this process."""
        if self.ephemeral or self.read_only:
            return live.anonymous_stem(os.getpid())
        return live.stem(self.view)


def ensure_store(store_path: Path) -> None:
    """Create the store if there is nothing yet or an empty directory."""
    if not store_path.exists() or (store_path.is_dir() and not any(store_path.iterdir())):
        Store.create(store_path).close()


def serve(
    store_path: Path, mountpoint: Path, options: MountOptions, ready: Callable[[], None]
) -> None:
    """Mount and serve until the mount is gone; ``ready`` is called when it answers.

    Raises:
        DedupfsError: it could not be mounted, or its end was not in order.
    """
    mountpoint = prepare_mountpoint(mountpoint, store_path)
    with Store.open(store_path) as store:
        live.remove_leftovers(store_path)
        _remove_dead_views(store)
        with opened_view(store, options, mountpoint) as view:
            serve_view(view, store_path, mountpoint, options, ready)
    log.info("ended mountpoint=%s", mountpoint)


def _remove_dead_views(store: Store) -> None:
    """Delete the ephemeral views of daemons that died before they could."""
    try:
        for name in remove_dead_ephemeral(store):
            log.info("dead ephemeral view removed view=%s", name)
    except DedupfsError as exc:  # gone in the meantime, or a full disk: no reason not to mount
        log.warning("dead ephemeral views stay: %s", exc)


@contextmanager
def opened_view(store: Store, options: MountOptions, mountpoint: Path) -> Iterator[View]:
    """Open the view that ``options`` name; close it (which folds it) in the end."""
    if options.read_only:
        view = View.open_read_only(store, snapshot=options.snapshot)
    elif options.ephemeral:
        view = View.open_ephemeral(store, snapshot=options.snapshot, mountpoint=str(mountpoint))
    else:
        view = View.bring_back(
            store, options.view, snapshot=options.snapshot, mountpoint=str(mountpoint)
        )
    try:
        yield view
    finally:
        view.close()


def serve_view(
    view: View,
    store_path: Path,
    mountpoint: Path,
    options: MountOptions,
    ready: Callable[[], None],
) -> None:
    """Mount an open view and serve it."""
    mount = LiveMount(view, store_path, mountpoint, options, ready)
    try:
        trio.run(mount.run)
    except ExceptionGroup as group:  # trio wraps whatever leaves a nursery
        raise _the_one_that_matters(group) from group


def _the_one_that_matters(group: ExceptionGroup[Exception]) -> Exception:
    """Return the expected failure in a group; a bug stays as it is, with all its tracebacks."""
    expected, _bugs = group.split((DedupfsError, OSError))
    if expected is None:
        return group
    first: BaseException = expected
    while isinstance(first, ExceptionGroup):
        first = first.exceptions[0]
    if isinstance(first, DedupfsError):
        return first
    return MountError(f"the connection to the kernel broke: {first}")


class LiveMount:
    """One mount while it is being served."""

    def __init__(
        self,
        view: View,
        store_path: Path,
        mountpoint: Path,
        options: MountOptions,
        ready: Callable[[], None],
    ) -> None:
        self._view = view
        self._mountpoint = mountpoint
        self._options = options
        self._store_path = store_path
        self._ready = ready
        self._answering = trio.Event()
        self._stopping = trio.Event()
        self._housekeeper = Housekeeper(view)

    async def run(self) -> None:
        """Mount, serve until the mount is gone, and leave nothing running."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals)
            await nursery.start(self._control().run)
            session = self._mount()
            try:
                await self._serve(session)
            finally:
                session.close()
            nursery.cancel_scope.cancel()

    def _mount(self) -> Session:
        operations = Operations(self._view, on_init=self._answering.set)
        flags = MountFlags(self._options.read_only, self._options.allow_other)
        session = Session.mount(
            operations,
            self._mountpoint,
            self._store_path,
            flags,
            is_idle=operations.is_idle,
        )
        log.info("mounted store=%s mountpoint=%s", self._store_path, self._mountpoint)
        return session

    async def _serve(self, session: Session) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce, session)
            nursery.start_soon(self._end_when_asked, session)
            nursery.start_soon(self._housekeeper.run)
            await session.serve()
            nursery.cancel_scope.cancel()

    def _control(self) -> ControlServer:
        running = live.Running(
            pid=os.getpid(),
            view="" if self._options.read_only else self._view.name,
            mountpoint=os.fspath(self._mountpoint),
            read_only=self._options.read_only,
        )
        name = self._options.stem + live.SOCKET_SUFFIX
        path = self._store_path / live.RUN_DIRECTORY / name
        return ControlServer(path, running, self._housekeeper, self._stopping.set)

    async def _watch_signals(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(*ENDING_SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                log.info("ending signal=%s", signal.Signals(number).name)
                self._stopping.set()

    async def _announce(self, session: Session) -> None:
        await self._answering.wait()  # INIT is answered in the same step that set this
        session.raise_read_ahead()
        self._ready()

    async def _end_when_asked(self, session: Session) -> None:
        """Unmount while requests are still answered, then end the session."""
        await self._stopping.wait()
        try:
            await trio.to_thread.run_sync(session.unmount)
        except MountError as exc:
            log.error("ending without unmounting: %s", exc)
        session.stop()
