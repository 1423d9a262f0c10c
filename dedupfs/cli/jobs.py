"""One command in namespaces of its own: how its processes follow each other and end.

    dedupfs run        passes signals on, waits; not in the process namespace
    `- first process   waits for all; when it ends, by whatever, the kernel ends all the others
       `- the command  and what it starts

Knows no store and no mount. Source: pid_namespaces(7), sigwaitinfo(2), pidfd_send_signal(2),
sh(1p) for exit codes.
"""

import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dedupfs.errors import DedupfsError, MountError
from dedupfs.fuse import private

CANNOT_EXECUTE = 126
NOT_FOUND = 127
SIGNALED = 128
PASSED_ON = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTSTP,
    signal.SIGCONT,
)
_WAITED_FOR = {*PASSED_ON, signal.SIGCHLD}
_FROM_THE_KERNEL = 0x80  # si_code SI_KERNEL: typed on a terminal, whose whole foreground has it
_TEXT_BYTES_MAX = 1 << 16


class CommandError(DedupfsError):
    """The command could not be started."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Job:
    """A command that runs."""

    pid: int
    command: int
    """Descriptor of the command's process."""
    failure: socket.socket
    """Where it says why it could not be started."""
    code: int | None = None
    """How it ended, as a shell says it."""

    def pass_on(self, came: signal.struct_siginfo) -> None:
        """Do with a signal what the command would have had to do with it."""
        number = signal.Signals(came.si_signo)
        if came.si_code != _FROM_THE_KERNEL:
            self._send(number)
        if number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    def _send(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self.command, number)
        except ProcessLookupError:
            return  # it has just ended

    def kill(self) -> None:
        """End all of it at once."""
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            self._ended(os.waitpid(self.pid, 0)[1])

    def has_ended(self) -> bool:
        """Whether no process of it is left."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended(status)
        return self.code is not None

    def _ended(self, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        self.code = code if code >= 0 else SIGNALED - code
        os.close(self.command)

    def raise_failure(self) -> None:
        """Tell why the command could not be started, if that is how it ended.

        Raises:
            CommandError: so it was.
        """
        with self.failure:
            try:
                said = self.failure.recv(_TEXT_BYTES_MAX, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
        if said:
            code, _, text = said.decode(errors="surrogateescape").partition(" ")
            raise CommandError(text, int(code))


class Signals:
    """Holds back what is to be passed on, until somebody waits for it."""

    def __enter__(self) -> "Signals":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, nobody could be waited for
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
        return self

    def __exit__(self, *_exc: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self.before)

    def next(self) -> signal.struct_siginfo:
        """Wait for one, SIGCHLD included."""
        return signal.sigwaitinfo(_WAITED_FOR)


def start(command: tuple[str, ...], directory: Path, signals: Signals) -> Job:
    """Run ``command`` in ``directory``; this process has entered a private namespace.

    Raises:
        MountError: the namespace could not be made whole.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # One of its own: the command may have failed before the first process tells that it started.
    failure, tell = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        failure.close()
        _be_the_first(theirs, lambda: _execute(command, directory, signals, tell))
    theirs.close()
    tell.close()
    with ours:
        said, fds, _flags, _address = socket.recv_fds(ours, _TEXT_BYTES_MAX, 1)
    if not fds:
        os.waitpid(pid, 0)
        failure.close()
        raise MountError(said.decode(errors="surrogateescape") or "the namespace was killed")
    os.set_inheritable(fds[0], False)
    return Job(pid, fds[0], failure)


def _be_the_first(line: socket.socket, execute: Callable[[], NoReturn]) -> NoReturn:
    """Be process 1: start the command, bury whoever dies, end when the command does."""
    try:
        private.become_first_process()
    except MountError as exc:
        line.send(str(exc).encode(errors="surrogateescape"))
        os._exit(MountError.exit_code)
    if _is_alone(line):  # the parent died before its death would have been ours
        os._exit(SIGNALED + signal.SIGKILL)
    command = os.fork()
    if command == 0:
        execute()
    descriptor = os.pidfd_open(command)
    socket.send_fds(line, [b"started"], [descriptor])
    os.close(descriptor)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == command:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else SIGNALED - code)


def _is_alone(line: socket.socket) -> bool:
    poll = select.poll()
    poll.register(line, 0)
    return bool(poll.poll(0))


def _execute(
    command: tuple[str, ...], directory: Path, signals: Signals, tell: socket.socket
) -> NoReturn:
    """Become the command, with the signals that this program was started with."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, signals.before)
    name, code = command[0], CANNOT_EXECUTE
    try:
        os.chdir(directory)
        os.execvpe(name, command, {**os.environ, "PWD": os.fspath(directory)})
    except FileNotFoundError:
        code, text = NOT_FOUND, f"{name}: command not found"
    except OSError as exc:
        text = f"cannot execute {name}: {exc.strerror}"
    tell.send(f"{code} {text}".encode(errors="surrogateescape"))
    os._exit(code)
