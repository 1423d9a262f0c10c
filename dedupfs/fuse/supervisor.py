"""The process above a daemon: when that dies, it starts another one, and callers only wait.

It holds the connection to the kernel, so requests wait instead of failing, and the descriptors that
say what is open and locked. It never looks into a store or at the mount, and sleeps while all is
well. Each daemon is a fork of it, so it must have imported what a daemon needs and run none of
it: no thread, no trio, no LMDB. Source: docs/architecture.md, "Takeover"; pidfd_open(2), fuse(4).
"""

import gc
import logging
import os
import select
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from dedupfs.errors import DedupfsError, MountError
from dedupfs.fuse.notifying import ServiceManager
from dedupfs.fuse.relay import Baton, Relay
from dedupfs.namespace.live import Failed

log = logging.getLogger(__name__)

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RENEWING = signal.SIGUSR2
"""Another program takes this one's place: a newer dedupfs, say."""
HEEDED = (*FORWARDED, RENEWING)
UNREADY_MAX = 3
"""So many daemons in a row that die before they answer: the next one would die, too."""
DEATHS_MAX = 8
DEATHS_PERIOD_S = 20.0
"""... and so many in this time of something else than SIGKILL: some request kills them."""

ENDING_STEP_S = 1.0
"""So often a daemon that puts its view away is looked at where a service manager may kill it ..."""
ENDING_MORE_S = 30.0
"""... and so much more time is asked for ..."""
ENDING_TICKS = 2
"""... when it has worked so much since: one that hangs does not, but for its heartbeat ..."""
ENDING_S_MAX = 3600.0
"""... but not for ever: what is closed is safe, and the next mount does the rest."""

NOBODY = ServiceManager()

Serve = Callable[[Baton | None, Callable[[Baton | None], None]], None]
"""The daemon: mounts, or goes on with a baton; says when it answers, and what it would leave."""


class Renewal(Protocol):
    """How a supervisor makes room for another program."""

    def is_possible(self) -> bool:
        """Whether that program would start."""
        ...

    def execute(self, baton: Baton) -> NoReturn:
        """Become that program, which goes on with the baton."""
        ...


def supervise(
    serve: Serve,
    ready: Callable[[], None],
    renewal: Renewal,
    baton: Baton | None = None,
    manager: ServiceManager = NOBODY,
    device: int | None = None,
) -> None:
    """Run ``serve`` in a child, and again whenever that dies; ``ready`` when the first one answers.

    ``baton``: a mount is there already; this process has just become another program. ``manager``
    is told of everything; where it watches, a daemon that is silent for too long is replaced.
    ``device``: a descriptor that the first daemon needs.

    Raises:
        DedupfsError: what the last daemon ended with.
    """
    gc.freeze()  # or the collector would write to, and so copy, every page that is shared
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would let no daemon be waited for
    _Supervisor(serve, ready, renewal, baton, manager, device).run()


@dataclass
class _Child:
    """One daemon."""

    pid: int
    handle: int
    relay: Relay
    answered: bool = False
    heard_s: float = 0.0
    """When it last said that it answers."""
    may_be_silent: bool = False
    """It puts the view away, which takes as long as it takes."""
    ending_s: float | None = None
    """When that began to be looked at ..."""
    spent_ticks: int = 0
    """... and what it had cost when more time was asked for."""
    failed: Failed | None = None

    @property
    def has_ended(self) -> bool:
        poll = select.poll()
        poll.register(self.handle, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def has_said_more(self) -> bool:
        poll = select.poll()
        poll.register(self.relay, select.POLLIN)
        return any(event == select.POLLIN for _fd, event in poll.poll(0))

    def close(self) -> None:
        os.close(self.handle)
        self.relay.close()


@dataclass
class _Supervisor:
    serve: Serve
    ready: Callable[[], None]
    renewal: Renewal
    baton: Baton | None = None
    manager: ServiceManager = NOBODY
    device: int | None = None
    unready: int = 0
    deaths_s: deque[float] = field(default_factory=lambda: deque(maxlen=DEATHS_MAX))

    def run(self) -> None:
        with _Signals() as signals:
            while True:
                child = self._start(signals)
                try:
                    code = self._watch(child, signals)
                finally:
                    child.close()
                if code == 0:
                    return
                error = _error(child, code)
                if not self._may_go_on(child, code):
                    raise error
                log.error("daemon ended, starting another pid=%d: %s", child.pid, error)
                self.manager.waiting(child.pid)

    def _start(self, signals: "_Signals") -> _Child:
        ours, theirs = Relay.pair()
        pid = os.fork()
        if pid == 0:
            signals.restore()
            ours.close()
            _close_all_but({theirs.fileno(), *self._kept()})
            os._exit(_be_the_daemon(self.serve, self.baton, theirs))
        theirs.close()
        if self.device is not None:  # the first daemon has it now
            os.close(self.device)
            self.device = None
        return _Child(pid, os.pidfd_open(pid), ours)

    def _kept(self) -> set[int]:
        kept = set(self.baton.fds.values()) if self.baton else set()
        return kept if self.device is None else {*kept, self.device}

    def _watch(self, child: _Child, signals: "_Signals") -> int:
        """Return the exit code of a daemon once it has ended; negative: the signal."""
        poll = select.poll()
        for watched in (child.relay, child.handle, signals):
            poll.register(watched, select.POLLIN)
        while True:
            readable = {fd for fd, _event in poll.poll(self._end_if_silent(child))}
            if child.relay.fileno() in readable and not self._listen(child):
                poll.unregister(child.relay)
            signals.collect()
            if signals.is_renewing and child.answered and child.handle not in readable:
                killed = self._renew(child, signals)
                if killed is not None:
                    return killed
            if child.answered or self.baton is None:  # one that takes over would just die of them
                self._forward(signals, child)
            if child.handle in readable:
                while self._listen(child):
                    continue
                return os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])

    def _end_if_silent(self, child: _Child) -> float | None:
        """Kill a daemon that has said nothing for too long: another one takes over.

        Returns:
            After how many milliseconds to look again, if nothing is heard.
        """
        if child.may_be_silent and self.manager.address:
            return self._ask_for_time(child)
        patience_s = self.manager.patience_s
        if patience_s is None or not child.answered or child.may_be_silent:
            return None
        left_s = child.heard_s + patience_s - time.monotonic()
        if left_s > 0:
            return left_s * 1000
        if child.has_said_more:  # it is this process that was stopped, or busy
            return 0.0
        child.may_be_silent = True
        if self.baton is None:
            return None
        if not _is_connected(self.baton.device):  # by umount(8): it puts the view away
            self.manager.stopping()  # which is not to be watched any longer
        else:
            log.critical("no sign of life for %.1f s, killed pid=%d", patience_s, child.pid)
            os.kill(child.pid, signal.SIGKILL)
        return None

    def _ask_for_time(self, child: _Child) -> float | None:
        """Ask for more time as long as a daemon gets on that puts its view away: else it hangs.

        Returns:
            After how many milliseconds to look again.
        """
        now_s, spent_ticks = time.monotonic(), _processor_ticks(child.pid)
        if child.ending_s is None:
            child.ending_s, child.spent_ticks = now_s, spent_ticks
        elif spent_ticks >= child.spent_ticks + ENDING_TICKS:
            self.manager.ending_goes_on(ENDING_MORE_S)
            child.spent_ticks = spent_ticks
        return ENDING_STEP_S * 1000 if now_s - child.ending_s < ENDING_S_MAX else None

    def _forward(self, signals: "_Signals", child: _Child) -> None:
        if signals.is_ending:
            self.manager.stopping()
            child.may_be_silent = True
            signals.forward(child.pid)

    def _renew(self, child: _Child, signals: "_Signals") -> int | None:
        """Become another program, if there is one that can go on; callers only wait.

        Returns:
            How the daemon ended, if it did and this is still the same program; None: it goes on.
        """
        signals.is_renewing = False
        if self.baton is None:
            log.error("this mount cannot be handed to another program")
            return None
        self.manager.reloading()
        if not self.renewal.is_possible():
            log.error("another program was asked for, but it does not start: going on as before")
            self.manager.ready(child.pid)
            return None
        # A signal in the middle of an exec would end this process and so the mount.
        with signals.held_back():
            signals.collect()
            if signals.is_ending:  # meanwhile
                return None  # and told so next
            if child.has_ended:
                signals.is_renewing = True  # the next one hands over as soon as it answers
                return None
            log.info("another program takes over")
            os.kill(child.pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
            try:
                self.renewal.execute(self.baton)
            except OSError as exc:
                log.error("another program was asked for, but cannot be executed: %s", exc)
            return code

    def _listen(self, child: _Child) -> bool:
        said = child.relay.receive()
        if isinstance(said, Failed):
            child.failed = said
        elif said is not None:
            if isinstance(said, Baton):
                self.baton = said
            if not child.answered:
                self.manager.ready(child.pid)
            self.manager.alive()
            child.heard_s = time.monotonic()
            child.answered = True
            self.unready = 0
            self.ready()
            self.ready = _nothing
        return said is not None

    def _may_go_on(self, child: _Child, code: int) -> bool:
        if self.baton is None or not _is_connected(self.baton.device):
            return False
        if not child.answered:
            self.unready += 1
            if self.unready >= UNREADY_MAX:
                log.critical("%d daemons ended before they answered: giving up", self.unready)
                return False
        if code != -signal.SIGKILL:
            self.deaths_s.append(time.monotonic())
            if (
                len(self.deaths_s) == DEATHS_MAX
                and self.deaths_s[-1] - self.deaths_s[0] < DEATHS_PERIOD_S
            ):
                log.critical("%d daemons died in a row: giving up", DEATHS_MAX)
                return False
        return True


def _close_all_but(kept: set[int]) -> None:
    """Close what a daemon has inherited and has no use for, such as the end of somebody's pipe."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor not in kept:
            with suppress(OSError):  # the one that listed the directory
                os.close(descriptor)


def _nothing() -> None:
    return None


def _error(child: _Child, code: int) -> DedupfsError:
    if child.failed is not None:
        return child.failed.raised()
    how = signal.Signals(-code).name if code < 0 else f"code {code}"
    when = "" if child.answered else " before it was ready"
    return MountError(f"the daemon ended with {how}{when}")


def _processor_ticks(pid: int) -> int:
    """Return what a child of ours has cost: proc(5), stat, utime and stime."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


def _is_connected(device: int) -> bool:
    """Whether the mount is still there: fuse(4), the kernel polls an ended one as an error."""
    poll = select.poll()
    poll.register(device, 0)
    return not poll.poll(0)


def _be_the_daemon(serve: Serve, baton: Baton | None, relay: Relay) -> int:
    try:
        serve(baton, relay.ready)
    except DedupfsError as exc:
        failed, code = Failed.of(exc), exc.exit_code
    except BaseException as exc:  # noqa: BLE001 - there is nobody above us
        traceback.print_exc()
        failed, code = Failed("MountError", f"a bug in the daemon: {exc!r}"), 1
    else:
        return 0
    with suppress(OSError):  # the supervisor itself was killed
        relay.failed(failed)
    return code


class _Signals:
    """What came: ending signals are kept until there is a daemon that can be told."""

    def __init__(self) -> None:
        self.is_renewing = False
        """Another program is to take over, as soon as a daemon has said what it would leave."""
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._waiting: list[int] = []

    def __enter__(self) -> "_Signals":
        self._old_wakeup = signal.set_wakeup_fd(self._writer.fileno())
        self._old = {number: signal.signal(number, _ignored) for number in HEEDED}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)  # the program before held them back
        return self

    def __exit__(self, *_exc: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Let signals do what they did."""
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Let signals wait: for the next program, which inherits that, sigprocmask(2)."""
        signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)

    @property
    def is_ending(self) -> bool:
        """Whether there is something to forward."""
        return bool(self._waiting)

    def fileno(self) -> int:
        """For poll(2)."""
        return self._reader.fileno()

    def collect(self) -> None:
        """Read which signals came."""
        try:
            came = self._reader.recv(4096)
        except BlockingIOError:
            return
        self._waiting += [number for number in came if number in FORWARDED]
        self.is_renewing |= RENEWING in came

    def forward(self, pid: int) -> None:
        """Send the daemon what came."""
        for number in self._waiting:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        self._waiting.clear()


def _ignored(_number: int, _frame: object) -> None:
    """The wakeup descriptor has it."""
