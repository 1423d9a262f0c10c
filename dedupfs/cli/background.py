"""Runs one command on in the background once it says that it is ready.

Fork first, import later: neither trio nor LMDB may be carried across a fork. The parent returns
when the child is ready, or raises the child's error. Source: daemon(7), fork(2).
"""

import logging
import os
import signal
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from dedupfs.cli import logs
from dedupfs.errors import DedupfsError, MountError
from dedupfs.namespace.live import Failed

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_READY = b"ready\n"

Said = TypeVar("Said")
Body = Callable[[Callable[[], None]], None]
"""Does the work; calls its argument when it is ready."""


@dataclass(frozen=True, slots=True)
class Starting:
    """A process that was started and is not ready yet."""

    pid: int
    reader: int

    def wait(self) -> int:
        """Return its process id once it is ready.

        Raises:
            DedupfsError: what ``body`` raised before it was ready.
        """
        with open(self.reader, "rb") as pipe:
            try:
                said = pipe.read()
            except KeyboardInterrupt:  # it has left our process group: tell it, and wait
                os.kill(self.pid, signal.SIGTERM)
                os.waitpid(self.pid, 0)
                raise
        if said == _READY:
            return self.pid
        _pid, status = os.waitpid(self.pid, 0)
        if not said:
            code = os.waitstatus_to_exitcode(status)
            raise MountError(f"the daemon ended with code {code} before it was ready")
        raise msgspec.json.decode(said, type=Failed).raised()


def start(body: Body, keep: Collection[int] = (), *, leave_group_late: bool = False) -> Starting:
    """Start ``body`` in a session of its own, with the descriptors ``keep``."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os._exit(_be_the_daemon(body, writer, keep, leave_group_late))
    os.close(writer)
    return Starting(pid, reader)


def run_in_background(body: Body, *, leave_group_late: bool = False) -> int:
    """Run ``body`` in a session of its own; return its process id once it is ready.

    ``leave_group_late``: the session begins only then. A helper of systemd's automount must mount
    in the process group that it was started in: all others wait for that mount, autofs(5).

    Raises:
        DedupfsError: what ``body`` raised before it was ready.
    """
    return start(body, leave_group_late=leave_group_late).wait()


def _be_the_daemon(body: Body, writer: int, keep: Collection[int], leave_group_late: bool) -> int:
    """Run ``body`` and return the exit code; the pipe is closed as soon as it has told enough."""
    told = False

    def ready() -> None:
        nonlocal told
        told = True
        if leave_group_late:
            os.setsid()
        try:
            os.write(writer, _READY)
        except BrokenPipeError:  # whoever wanted this mount is gone: end in order
            os.kill(os.getpid(), signal.SIGTERM)
        os.close(writer)

    try:
        if not leave_group_late:
            os.setsid()
        _let_go({writer, *keep})
        body(ready)
    except DedupfsError as exc:
        failed, code = Failed.of(exc), exc.exit_code
    except BaseException as exc:  # noqa: BLE001 - there is nobody above us
        traceback.print_exc()
        failed, code = Failed("MountError", f"a bug in the daemon: {exc!r}"), 1
    else:
        return 0
    if told:
        logging.getLogger(__name__).critical("ended with an error: %s", failed.message)
    else:
        os.write(writer, msgspec.json.encode(failed))
    return code


def leaving_group(ready: Callable[[Said], None]) -> Callable[[Said], None]:
    """Return a ``ready`` that begins a session of this process's own when it is first called."""
    is_first = True

    def leave(said: Said) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            os.setsid()
        ready(said)

    return leave


def _let_go(keep: set[int]) -> None:
    """Let go of all else that was inherited: directory, terminal, descriptors, who is to be told.

    A service manager hears of its service's main process alone: sd_notify(3).
    """
    for variable in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        os.environ.pop(variable, None)
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:  # the one that listed the directory
                continue


def log_to(path: Path, log_format: str = "text") -> None:
    """Send standard output, standard error and the log to a file that only its owner reads."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    log_to_stderr(log_format)


def log_to_stderr(log_format: str = "text") -> None:
    """Set up the log of a daemon, in place of a command's; DEBUG stays if it was asked for.

    ``log_format``: one of ``logs.FORMATS``; "journal" passes standard error by.
    """
    level = min(logging.INFO, logging.getLogger().level)
    logs.set_up(level, log_format, LOG_FORMAT)
