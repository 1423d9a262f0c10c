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
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from dedupfs.errors import DedupfsError, MountError
from dedupfs.fuse import repeats
from dedupfs.fuse.control import ControlServer
from dedupfs.fuse.counting import Counting
from dedupfs.fuse.device import MountFlags
from dedupfs.fuse.handshake import Unanswered, unanswered
from dedupfs.fuse.housekeeping import Housekeeper
from dedupfs.fuse.operations import Operations
from dedupfs.fuse.relay import Baton
from dedupfs.fuse.session import Session, prepare_mountpoint
from dedupfs.namespace import live
from dedupfs.namespace.handover import OWNER
from dedupfs.namespace.ledger import Ledger
from dedupfs.namespace.view import View
from dedupfs.namespace.views import remove_dead_ephemeral
from dedupfs.store.pace import run_steps
from dedupfs.store.space import drop_half_made
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
    cached_writes: bool = True
    """Let the kernel keep writes in its page cache; only ever done where a supervisor is, which
    has another daemon get them."""
    limit_bytes: int | None = None
    """Limit the view to so many bytes from now on; None: as it was limited before."""
    auto_gc: bool = True
    """Look for what others left to be freed when the disk runs low."""
    supervisor: int = 0
    """Process that starts another daemon when this one dies; 0: there is none."""
    metrics: str = ""
    """Where to answer Prometheus, ``ADDRESS:PORT``; empty: nowhere."""
    since_ns: int = 0
    """When it was mounted."""
    no_exec: bool = False
    """Let no program be executed from the mount."""
    heartbeat_s: float = 0.0
    """How often to say again that requests are answered; 0: once is enough."""
    labels: str = ""
    """What the kernel is told for SELinux: ``context="..."`` and the like."""
    is_private: bool = False
    """The mount is in a mount namespace of its own, made and ended by somebody else."""

    @property
    def stem(self) -> str:
        """Name, without suffix, of this mount's files in the run directory; for this process."""
        if self.ephemeral or self.read_only:
            return live.anonymous_stem(self.supervisor or os.getpid())
        return live.stem(self.view)


def ensure_store(store_path: Path) -> None:
    """Create the store if there is nothing yet or an empty directory."""
    if not store_path.exists() or (store_path.is_dir() and not any(store_path.iterdir())):
        Store.create(store_path).close()


Ready = Callable[[Baton | None], None]
"""Called when requests are answered, with what another daemon would need to go on, if one can; with
``heartbeat_s`` again and again with None."""


def serve(
    store_path: Path,
    mountpoint: Path,
    options: MountOptions,
    ready: Ready,
    device: int | None = None,
) -> None:
    """Mount and serve until the mount is gone; ``device``: a private mount is there already.

    Raises:
        DedupfsError: it could not be mounted, or its end was not in order.
    """
    if device is None:
        mountpoint = prepare_mountpoint(mountpoint, store_path)
    with Store.open(store_path) as store:
        live.remove_leftovers(store_path)
        _remove_dead_views(store)
        with opened_view(store, options, mountpoint) as view:
            serve_view(view, store_path, mountpoint, options, ready, device)
        if options.ephemeral:
            _give_back(view)
    log.info("ended mountpoint=%s", mountpoint)


def resume(
    store_path: Path, mountpoint: Path, options: MountOptions, ready: Ready, baton: Baton
) -> None:
    """Go on where a daemon died under its mount, which this one must not look at.

    Raises:
        DedupfsError: it could not be done, or the mount's end was not in order.
    """
    handover = baton.handover
    with Store.open(store_path) as store:
        store.adopt_owner(handover.owner, handover.fds[OWNER])
        drop_half_made(store)
        waiting = unanswered(baton.device)
        in_hand = _request_in_hand(waiting, handover.ledger)
        with closing(View.take_over(store, handover, os.fspath(mountpoint))) as view:
            if in_hand is not None and view.did_request and repeats.is_harmful(in_hand):
                view.ledger.note_done(in_hand.unique)
            view.ledger.end()
            done = view.ledger.done
            lost = Lost(baton.device, [request for request in waiting if request.unique in done])
            serve_view(view, store_path, mountpoint, options, ready, lost)
        if options.ephemeral:
            _give_back(view)
    log.info("ended mountpoint=%s", mountpoint)


def _give_back(view: View) -> None:
    """Free what went with an ephemeral view, as a mount does of what is deleted in it."""
    try:
        run_steps(view.relief.giving_back())
    except DedupfsError as exc:
        log.warning("what the view held is left for gc: %s", exc)


def _request_in_hand(waiting: list[Unanswered], ledger: Ledger) -> Unanswered | None:
    """Return the request that the dead daemon had in hand, if it was not answered.

    What it opened is closed: the answer that told of it was never sent. The note of one that was
    answered goes at once: from now on the kernel sends again what nobody had taken before, too, and
    to the daemon after this one the caller's next request could look like it.
    """
    request = ledger.request
    found = repeats.find(request, waiting)
    if found is None:
        ledger.end()
    elif request is not None and request.handle:
        ledger.close_handle(request.handle)
    return found


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
        if options.limit_bytes is not None:
            view.quota.set_limit(options.limit_bytes)
        yield view
    finally:
        view.close()


def serve_view(
    view: View,
    store_path: Path,
    mountpoint: Path,
    options: MountOptions,
    ready: Ready,
    lost: "Lost | int | None" = None,
) -> None:
    """Mount an open view and serve it.

    ``lost``: what is there to go on with; a new, private mount is only its device.
    """
    mount = LiveMount(view, store_path, mountpoint, options, ready, lost)
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


@dataclass(frozen=True, slots=True)
class Lost:
    """What dead daemons left: the connection, and requests that were done and not answered."""

    device: int
    done: list[Unanswered]


class LiveMount:
    """One mount while it is being served."""

    def __init__(
        self,
        view: View,
        store_path: Path,
        mountpoint: Path,
        options: MountOptions,
        ready: Ready,
        lost: Lost | int | None,
    ) -> None:
        self._view = view
        self._lost = lost if isinstance(lost, Lost) else None
        self._device = lost if isinstance(lost, int) else None
        self._mountpoint = mountpoint
        self._options = options
        self._store_path = store_path
        self._ready = ready
        self._answering = trio.Event()
        self._stopping = trio.Event()
        self._housekeeper = Housekeeper(view, self._quiet, auto_gc=options.auto_gc)
        self._counting = Counting(view)
        self._session: Session | None = None
        self._running = live.Running(
            pid=os.getpid(),
            view="" if options.read_only else view.name,
            mountpoint=os.fspath(mountpoint),
            read_only=options.read_only,
            supervisor=options.supervisor,
            snapshot=options.snapshot or "",
            ephemeral=options.ephemeral,
            since_ns=options.since_ns or time.time_ns(),
        )

    async def run(self) -> None:
        """Mount, serve until the mount is gone, and leave nothing running."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals)
            self._answer_prometheus(nursery)
            await nursery.start(self._control().run)
            session = self._session = self._mount()
            try:
                await self._serve(session)
            finally:
                session.close()
            nursery.cancel_scope.cancel()

    def _answer_prometheus(self, nursery: trio.Nursery) -> None:
        """Bind before anything is mounted, so that who mounts hears of it if that fails.

        A mount that is there already is worth more than its numbers.
        """
        if not self._options.metrics:
            return
        store = os.path.realpath(self._store_path)  # as 'dedupfs metrics' calls it
        try:
            from dedupfs.fuse.scraping import Prometheus  # noqa: PLC0415 - what few mounts need

            told = Prometheus(self._options.metrics, store, self._running, self._counting.tell)
        except (DedupfsError, ImportError) as exc:  # after an upgrade it may be gone
            if self._lost is None:
                raise
            log.error("going on without metrics: %s", exc)
            return
        self._running = msgspec.structs.replace(self._running, metrics=told.address)
        log.info("metrics address=%s", told.address)
        nursery.start_soon(told.run)

    def _mount(self) -> Session:
        if self._lost is not None:
            return self._go_on(self._lost)
        operations = self._operations()
        self._counting.operations = operations
        options = self._options
        cached_writes = options.cached_writes and not options.read_only and options.supervisor != 0
        flags = MountFlags(
            options.read_only, options.allow_other, cached_writes, options.no_exec, options.labels
        )
        if self._device is None:
            session = Session.mount(
                operations, self._mountpoint, self._store_path, flags, pace=operations
            )
        else:
            session = Session.attach(
                operations, self._mountpoint, self._device, flags, pace=operations
            )
        self._view.ledger.init_request = session.init_request
        self._view.has_cached_writes = session.has_cached_writes
        log.info("mounted store=%s mountpoint=%s", self._store_path, self._mountpoint)
        return session

    def _operations(self, done: Sequence[Unanswered] = ()) -> Operations:
        return Operations(
            self._view,
            on_init=self._answering.set,
            done=done,
            make_room=self._housekeeper.make_room,
        )

    def _go_on(self, lost: Lost) -> Session:
        operations = self._operations(lost.done)
        self._counting.operations = operations
        ledger = self._view.ledger
        session = Session.resume(
            operations,
            self._mountpoint,
            lost.device,
            ledger.init_request,
            operations,
            cached_writes=ledger.has_cached_writes,
            is_private=self._options.is_private,
        )
        self._view.has_cached_writes = session.has_cached_writes
        log.warning("took over store=%s mountpoint=%s", self._store_path, self._mountpoint)
        return session

    async def _serve(self, session: Session) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce, session)
            nursery.start_soon(self._end_when_asked, session)
            nursery.start_soon(self._housekeeper.run)
            await session.serve()
            nursery.cancel_scope.cancel()

    def _control(self) -> ControlServer:
        name = self._options.stem + live.SOCKET_SUFFIX
        path = self._store_path / live.RUN_DIRECTORY / name
        return ControlServer(
            path, self._running, self._housekeeper, self._stopping.set, self._counting.tell
        )

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
        if self._lost is not None:
            self._ready(None)
        else:
            session.raise_limits()
            can_go_on = bool(session.init_request)
            self._ready(Baton.of(session.device, self._view.handover()) if can_go_on else None)
        while self._options.heartbeat_s:  # from here: it is this loop that answers requests
            await trio.sleep(self._options.heartbeat_s)
            self._ready(None)

    async def _quiet(self) -> None:
        if self._session is not None:
            await self._session.quiet()

    async def _end_when_asked(self, session: Session) -> None:
        """Unmount while requests are still answered, then end the session."""
        await self._stopping.wait()
        try:
            await session.unmount()
        except MountError as exc:
            log.error("ending without unmounting: %s", exc)
        session.stop()
