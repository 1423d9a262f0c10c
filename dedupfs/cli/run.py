"""The command ``run``: a command in a private view of a snapshot, of which nothing stays.

Knows how mount, daemon and command follow each other; the namespaces are ``fuse/private``'s, the
processes ``cli/jobs``'s. The daemon is outside of the namespaces: so it holds nothing of them, and
when their last process ends, by whatever, the kernel ends the mount, and with it the daemon.
With the engine ``overlay`` that mount is read-only, and the kernel's overlayfs over it
(``fuse/overlay``) writes to a scratch directory (``cli/scratch``). What --commit makes of it is
``cli/keeping``'s. Specified in docs/cli.md.
"""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import click

from dedupfs.cli import background, jobs, keeping, output, scratch
from dedupfs.cli.arguments import STORE, TAG, completed_with, parse_tags, snapshot_argument
from dedupfs.cli.scratch import Kept, Scratch
from dedupfs.errors import DedupfsError, MountError, UsageError
from dedupfs.fuse import device, overlay, private
from dedupfs.namespace import live

ROOT_DIRECTORY = "root"
"""In the run directory: where the view is mounted when nobody says where; the same for all runs,
for each of them has it to itself."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for."""

    store: Path
    snapshot: str
    mountpoint: Path
    """Where the command sees the tree."""
    read_only: bool
    limit_bytes: int | None
    scratch: Scratch | None = None
    """Where what is written goes, when overlayfs writes it."""

    @property
    def served(self) -> Path:
        """Where the daemon's mount is."""
        return self.mountpoint if self.scratch is None else self.scratch.path / overlay.LOWER

    @property
    def is_served_read_only(self) -> bool:
        """Whether the daemon's mount takes no writes."""
        return self.read_only or self.scratch is not None


@click.command()
@STORE
@snapshot_argument("snapshot", "SNAPSHOT")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--commit", metavar="NAME", help="Freeze the view as NAME if COMMAND succeeds.")
@TAG
@click.option(
    "--at",
    type=click.Path(path_type=Path),
    shell_complete=completed_with("directory"),
    help="Show the tree on this directory.",
)
@click.option("--bind", "binds", metavar="SRC:DST", multiple=True, help="Show SRC at DST, too.")
@click.option("--read-only", is_flag=True, help="Write nothing.")
@click.option("--limit", metavar="SIZE", help="Let the view hold so much of its own.")
@click.option(
    "--engine",
    type=click.Choice(["fuse", "overlay"]),
    default="fuse",
    help="What takes writes: the daemon (default), or the kernel's overlayfs.",
)
@click.option(
    "--upper-dir",
    type=click.Path(path_type=Path),
    shell_complete=completed_with("directory"),
    help="Where overlayfs keeps what is written (default: $TMPDIR or /tmp).",
)
@click.pass_context
def run(
    context: click.Context,
    store: Path,
    snapshot: str,
    command: tuple[str, ...],
    commit: str | None,
    tags: tuple[str, ...],
    at: Path | None,
    binds: tuple[str, ...],
    read_only: bool,
    limit: str | None,
    engine: str,
    upper_dir: Path | None,
) -> None:
    """Run COMMAND in a view of SNAPSHOT that nobody else sees and that goes with it.

    It starts in the snapshot's root and writes there as if it were alone. When it ends, so does
    every process that it has started, and what was written is gone, unless --commit keeps it.
    The exit code is COMMAND's; signals are passed on to it. Works for ordinary users, too, where
    they may make user namespaces. It keeps files apart and is no sandbox: COMMAND sees the
    machine's other files and its network.

    \b
    Examples:
      dedupfs run store/ nightly -- make test
      dedupfs run store/ nightly --commit built --bind ~/.cache/pip:.pip -- ./build.sh
    """
    if read_only and (commit is not None or limit is not None):
        raise UsageError("--read-only writes nothing: not with --commit or --limit")
    if tags and commit is None:
        raise UsageError("--tag is for the snapshot that --commit makes")
    if engine == "overlay" and (read_only or limit is not None):
        raise UsageError("--engine overlay is for writing, without --limit: not with --read-only")
    if engine != "overlay" and upper_dir is not None:
        raise UsageError("--upper-dir is for --engine overlay")
    request = None if commit is None else live.Commit(commit, b"", parse_tags(tags))
    store = Path(os.path.abspath(store))
    mountpoint = _mountpoint(store, at)
    limit_bytes = None if limit is None else output.parse_size(limit)
    mounted_binds = [_split(bind) for bind in binds]
    with ExitStack() as stack:
        found = None
        if engine == "overlay":
            found = stack.enter_context(closing(scratch.make(upper_dir)))
        order = Order(store, snapshot, mountpoint, read_only, limit_bytes, found)
        code = _Run(order, mounted_binds, request).run(command)
    context.exit(code)


def _mountpoint(store: Path, at: Path | None) -> Path:
    from dedupfs.store.layout import require_reachable

    require_reachable(store)
    if not (store / "dedupfs.json").is_file():
        raise UsageError(f"{store} is not a store: there is no dedupfs.json")
    if at is None:
        run_directory = store / live.RUN_DIRECTORY
        try:
            run_directory.mkdir(mode=0o700, exist_ok=True)
            (run_directory / ROOT_DIRECTORY).mkdir(mode=0o700, exist_ok=True)
        except OSError as exc:
            raise MountError(f"cannot write in {run_directory}: {exc.strerror}") from exc
        return Path(os.path.realpath(run_directory / ROOT_DIRECTORY))
    found = Path(os.path.realpath(at))
    if not at.is_absolute() or found == Path("/") or not found.is_dir():
        raise UsageError(f"--at {at}: give the absolute path of a directory that is there, not /")
    return found


def _split(text: str) -> tuple[Path, str]:
    source, colon, target = text.rpartition(":")
    if not colon or not source or not target:
        raise UsageError(f"--bind {text!r} is not of the form SRC:DST")
    return Path(os.path.abspath(source)), target


class _Run:
    """One run, from its daemon's start to its end."""

    def __init__(
        self,
        order: Order,
        binds: list[tuple[Path, str]],
        request: live.Commit | None,
    ) -> None:
        self._order = order
        self._binds = binds
        self._request = request
        self._daemon = 0
        self._daemon_code: int | None = None
        self._alone: live.ProcessEnd | None = None
        self._is_told = False
        self._is_killed = False
        self._store_directory = -1
        self._run_directory = -1
        self._kept: Kept | None = None
        """How to understand what overlayfs writes, if it is to become a snapshot."""
        self._above = ExitStack()
        """What covers the way to the store and to the scratch directory."""

    def run(self, command: tuple[str, ...]) -> int:
        """Return the command's exit code once nothing of it is left."""
        with ExitStack() as stack:
            run_directory = self._order.store / live.RUN_DIRECTORY
            self._store_directory = os.open(self._order.store, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, self._store_directory)
            self._run_directory = os.open(run_directory, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, self._run_directory)
            stack.callback(self._end_daemon)
            self._mount(stack)
            signals = stack.enter_context(jobs.Signals())
            job = jobs.start(command, self._order.mountpoint, signals)
            stack.callback(job.kill)
            code = self._watch(job, signals)
            job.raise_failure()
            if code == 0 and self._request is not None:
                self._keep(self._request, signals)
        return code

    def _mount(self, stack: ExitStack) -> None:
        """Start the daemon, which imports meanwhile, and mount for it."""
        ours, theirs = socket.socketpair()
        name = None if self._request is None else self._request.name
        with ours:
            with theirs:
                starting = background.start(_daemon(self._order, name, theirs), {theirs.fileno()})
            try:
                private.enter()
                binds = [private.open_bind(source, target) for source, target in self._binds]
                self._connect(ours, stack)
            except BaseException:
                ours.close()  # it ends by that
                os.waitpid(starting.pid, 0)
                raise
        try:
            starting.wait()
        except BaseException:  # it has told why
            self._remove_files(starting.pid)
            raise
        self._daemon = starting.pid
        device.raise_limits(self._order.served)
        stack.enter_context(self._above)
        if self._order.scratch is not None:
            self._mount_overlay(self._order.scratch)
        for bind in binds:
            target = private.bind(bind, self._order.mountpoint)
            os.close(bind.source)
            if self._order.scratch is not None:
                self._above.callback(private.detach, target)

    def _mount_overlay(self, found: Scratch) -> None:
        """Let the command write beside what the daemon serves."""
        overlay.require_fit(found.path)
        top = overlay.prepare(found.path)
        overlay.mount(found.path, self._order.mountpoint)
        self._above.callback(private.detach, self._order.mountpoint)
        if self._request is not None:
            shown = live.ask(self._socket_path, live.Base())
            assert isinstance(shown, live.Shown)
            self._kept = Kept(
                self._order.snapshot,
                shown.root,
                overlay.xattr_prefix(),
                top.mode,
                top.uid,
                top.gid,
                top.xattrs,
            )
            found.note(self._kept)

    def _connect(self, line: socket.socket, stack: ExitStack) -> None:
        """Mount, and hand the connection over."""
        flags = device.MountFlags(self._order.is_served_read_only, allow_other=True)
        mountpoint = self._order.served
        connection = device.mount_device(mountpoint, os.fsencode(self._order.store), flags)
        stack.callback(private.discard, mountpoint)
        try:
            socket.send_fds(line, [b"mounted"], [connection])
        except BrokenPipeError:
            return  # the daemon could not even start; it says why
        finally:
            os.close(connection)  # or the mount would outlive the daemon

    def _watch(self, job: jobs.Job, signals: jobs.Signals) -> int:
        """Pass signals on until the command has ended."""
        while not job.has_ended():
            if self._daemon_has_ended() and not self._goes_on_alone():
                job.kill()
                self._is_told = True
                raise MountError(
                    f"the daemon ended with code {self._daemon_code}, so the command was killed; "
                    f"its log is {self._log}"
                )
            came = signals.next()
            if came.si_signo != signal.SIGCHLD:
                job.pass_on(came)
        if self._daemon_has_ended():
            self._goes_on_alone()  # in the same moment: it has to be waited for all the same
        assert job.code is not None
        return job.code

    @property
    def _stem(self) -> str:
        return live.anonymous_stem(self._daemon)

    @property
    def _log(self) -> Path:
        return self._order.store / live.RUN_DIRECTORY / (self._stem + live.LOG_SUFFIX)

    @property
    def _socket_path(self) -> Path:
        # By descriptor: the view may be mounted over the way to the store.
        return Path(f"/proc/self/fd/{self._run_directory}", self._stem + live.SOCKET_SUFFIX)

    def _keep(self, request: live.Commit, signals: jobs.Signals) -> None:
        """Make the snapshot; what overlayfs has written is kept if that cannot be."""
        written: keeping.Written
        found = self._order.scratch
        if found is None:
            written = keeping.InView(self._order.mountpoint, self._socket_path, self._kill_daemon)
        else:
            assert self._kept is not None
            self._above.close()
            found.keep()
            written = keeping.InScratch(self._order.store, found, self._kept)
        keeping.keep(written, request, self._store_directory, signals.before)

    def _kill_daemon(self) -> None:
        """End the daemon, its supervisor and whoever would follow them: they have a group."""
        self._is_killed = True
        with suppress(ProcessLookupError):
            os.killpg(self._daemon, signal.SIGKILL)

    def _daemon_has_ended(self) -> bool:
        if self._daemon_code is None:
            pid, status = os.waitpid(self._daemon, os.WNOHANG)
            if pid:
                self._daemon_code = os.waitstatus_to_exitcode(status)
        return self._daemon_code is not None

    def _goes_on_alone(self) -> bool:
        """Whether only the supervisor was killed."""
        if self._alone is None:
            try:
                reply = live.ask(self._socket_path, live.Status(), timeout_s=live.STATUS_TIMEOUT_S)
            except DedupfsError:
                return False
            assert isinstance(reply, live.Running)
            self._alone = live.ProcessEnd(reply.pid)
        return True

    def _end_daemon(self) -> None:
        """Wait until the daemon, whose mount is gone, has put everything away."""
        if not self._daemon:
            return
        if self._alone is not None:
            self._alone.wait()
        elif not self._daemon_has_ended():
            _pid, status = os.waitpid(self._daemon, 0)
            self._daemon_code = os.waitstatus_to_exitcode(status)
        if self._daemon_code == 0 or self._alone is not None or self._is_killed:
            self._remove_files(self._daemon)
        elif not self._is_told:
            output.note(f"the daemon ended with code {self._daemon_code}; its log is {self._log}")

    def _remove_files(self, daemon: int) -> None:
        for suffix in (live.SOCKET_SUFFIX, live.LOG_SUFFIX):
            with suppress(OSError):
                os.unlink(live.anonymous_stem(daemon) + suffix, dir_fd=self._run_directory)


def _daemon(order: Order, name: str | None, line: socket.socket) -> background.Body:
    """Return what the daemon does: import, wait for its mount, serve it.

    ``name``: of the snapshot that is to be made in the end.
    """
    # As the rest of the machine can reach it, with the rights of who runs the command.
    seen = Path(f"/proc/{os.getpid()}/root{order.served}")

    def body(ready: Callable[[], None]) -> None:
        try:
            from dedupfs.cli import upgrade
            from dedupfs.fuse import server, supervisor
            from dedupfs.fuse.relay import Baton
            from dedupfs.namespace.snapshots import SnapshotCatalog
            from dedupfs.store import Store
        except ImportError as exc:
            raise MountError(
                f"mounting needs pyfuse3 and trio: pip install 'dedupfs[fuse]' ({exc})"
            ) from exc
        with line:
            _said, fds, _flags, _address = socket.recv_fds(line, 16, 1)
        if not fds:
            return  # it was not mounted, for a reason that is told already
        connection = fds[0]
        options = server.MountOptions(
            snapshot=order.snapshot,
            ephemeral=not order.is_served_read_only,
            read_only=order.is_served_read_only,
            allow_other=True,
            limit_bytes=order.limit_bytes,
            supervisor=os.getpid(),
            since_ns=time.time_ns(),
            is_private=True,
        )
        background.log_to(order.store / live.RUN_DIRECTORY / (options.stem + live.LOG_SUFFIX))
        mounted = upgrade.SupervisedMount(order.store, seen, options)

        def serve(baton: Baton | None, ready: server.Ready) -> None:
            if baton is None:
                if name is not None:  # told now, not when the command has done its work
                    with Store.open(order.store) as store:
                        SnapshotCatalog(store).require_free(name)
                server.serve(order.store, seen, options, ready, connection)
            else:
                mounted.serve(baton, ready)

        supervisor.supervise(serve, ready, mounted, device=connection)

    return body


COMMANDS: list[click.Command] = [run]
