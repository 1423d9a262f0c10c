"""The commands mount and umount: how a supervisor begins, and how its end is waited for.

Knows how to ask for things, not how they are done; FUSE is imported by the process that mounts
alone. Specified in docs/cli.md.
"""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

import click

from dedupfs.cli import background, logs, output
from dedupfs.cli.arguments import DEFAULT_VIEW, STORE, completed_with
from dedupfs.errors import MountError, UsageError
from dedupfs.fuse import mountpoints
from dedupfs.namespace import live

WAITING_S = 3.0
"""After so long ``umount`` says whom it waits for, if that is not the daemon itself."""


@click.command()
@STORE
@click.argument(
    "mountpoint", type=click.Path(path_type=Path), shell_complete=completed_with("directory")
)
@click.option(
    "--snapshot",
    metavar="S",
    shell_complete=completed_with("snapshot"),
    help="Show this snapshot's tree instead of all of them.",
)
@click.option(
    "--view",
    metavar="V",
    shell_complete=completed_with("view"),
    help="Write into this view (default: 'default').",
)
@click.option("--ephemeral", is_flag=True, help="Write into a view that goes with the mount.")
@click.option("--read-only", is_flag=True, help="Write nothing.")
@click.option(
    "--limit", metavar="SIZE", help="Let the view hold so much of its own; stays when unmounted."
)
@click.option("--no-writeback", is_flag=True, help="Hand each write over before it returns.")
@click.option("--no-auto-gc", is_flag=True, help="Leave others' garbage alone on a full disk, too.")
@click.option(
    "--metrics",
    metavar="[ADDRESS:]PORT",
    help="Answer Prometheus there, at /metrics; ADDRESS: 127.0.0.1 if not given.",
)
@click.option(
    "--log-format",
    type=click.Choice(logs.FORMATS),
    help="How to log (default: journal under systemd with --foreground, else text).",
)
@click.option("--foreground", is_flag=True, help="Stay, and log to standard error.")
@click.option("--allow-other", is_flag=True, help="Let other users in; files' modes still hold.")
def mount(
    store: Path,
    mountpoint: Path,
    snapshot: str | None,
    view: str | None,
    ephemeral: bool,
    read_only: bool,
    limit: str | None,
    no_writeback: bool,
    no_auto_gc: bool,
    metrics: str | None,
    log_format: str | None,
    foreground: bool,
    allow_other: bool,
) -> None:
    """Mount a view of STORE on MOUNTPOINT; a missing or empty STORE is created.

    The root shows every snapshot as a directory, or with --snapshot what is in that one. All of it
    can be written to: that goes into the view alone, which is kept when it is unmounted and comes
    back with the next mount; commit makes a snapshot of it. Snapshots never change. The command
    returns when the mount answers; umount ends it. When its daemon dies, another one takes over.

    \b
    Examples:
      dedupfs mount store/ /workspace/ckpts
      dedupfs mount store/ /mnt --snapshot step-1000 --view job17
      dedupfs mount store/ /mnt --read-only
    """
    if (view is not None) + ephemeral + read_only > 1:
        raise UsageError("--view, --ephemeral and --read-only exclude each other")
    if limit is not None and read_only:
        raise UsageError("--limit is for what is written: not with --read-only")
    body = functools.partial(
        serve,
        Path(os.path.abspath(store)),
        Path(os.path.abspath(mountpoint)),
        foreground=foreground,
        snapshot=snapshot,
        view=view or DEFAULT_VIEW,
        ephemeral=ephemeral,
        read_only=read_only,
        allow_other=allow_other,
        cached_writes=not no_writeback,
        limit_bytes=None if limit is None else output.parse_size(limit),
        auto_gc=not no_auto_gc,
        metrics=metrics or "",
        log_format=log_format or ("journal" if foreground and logs.is_journal(2) else "text"),
    )
    if foreground:
        body(_nothing)
    else:
        background.run_in_background(body)


def serve(
    store_path: Path,
    mountpoint: Path,
    ready: Callable[[], None],
    *,
    foreground: bool = False,
    create: bool = True,
    leave_group: bool = False,
    snapshot: str | None = None,
    view: str = DEFAULT_VIEW,
    ephemeral: bool = False,
    read_only: bool = False,
    allow_other: bool = False,
    cached_writes: bool = True,
    limit_bytes: int | None = None,
    auto_gc: bool = True,
    no_exec: bool = False,
    labels: str = "",
    metrics: str = "",
    log_format: str = "text",
) -> None:
    """Be the supervisor of the daemons. Everything heavy is imported here, behind the fork."""
    try:
        from dedupfs.cli import upgrade
        from dedupfs.fuse import server, session, supervisor
        from dedupfs.fuse.notifying import ServiceManager
        from dedupfs.store.layout import require_reachable
    except ImportError as exc:
        raise MountError(
            f"mounting needs pyfuse3 and trio: pip install 'dedupfs[fuse]' ({exc})"
        ) from exc
    subject = f"{store_path} on {mountpoint}"
    manager = ServiceManager.from_environment(os.environ, os.getpid(), subject)
    options = server.MountOptions(
        view,
        snapshot,
        ephemeral,
        read_only,
        allow_other,
        cached_writes,
        limit_bytes,
        auto_gc,
        supervisor=os.getpid(),
        metrics=metrics,
        since_ns=time.time_ns(),
        no_exec=no_exec,
        labels=labels,
        heartbeat_s=manager.heartbeat_s,
    )
    if metrics:
        upgrade.import_metrics()
    if foreground:
        os.chdir("/")  # a working directory below the mount would wait for ourselves
        background.log_to_stderr(log_format)
    mountpoint = session.prepare_mountpoint(mountpoint, store_path)
    require_reachable(store_path)
    if create and not read_only and snapshot is None:
        server.ensure_store(store_path)
    if not foreground and store_path.is_dir():
        run_directory = store_path / live.RUN_DIRECTORY
        background.log_to(run_directory / (options.stem + live.LOG_SUFFIX), log_format)
    mounted = upgrade.SupervisedMount(store_path, mountpoint, options, leave_group, log_format)
    supervisor.supervise(mounted.serve, ready, mounted, manager=manager)


def _nothing() -> None:
    """Tell nobody: where a service manager asked, the supervisor does."""


@click.command()
@click.argument(
    "mountpoint", type=click.Path(path_type=Path), shell_complete=completed_with("mountpoint")
)
def umount(mountpoint: Path) -> None:
    """Unmount MOUNTPOINT and wait until its daemon has put everything away.

    \b
    Example:
      dedupfs umount /workspace/ckpts
    """
    end(mountpoint)


def end(mountpoint: Path) -> None:
    """Unmount and wait for the daemon, or clear what a dead one left."""
    found = mountpoints.find_mount(mountpoint)
    if found is None:
        raise UsageError(f"{mountpoint} is not a mount point of dedupfs")
    daemon = live.daemon_at(Path(found.source), found.mountpoint)
    dead = daemon is None and mountpoints.is_stale(found)  # waits while a daemon takes over ...
    if daemon is None and not dead:
        daemon = live.daemon_at(Path(found.source), found.mountpoint)  # ... and so has done now
    if dead:
        cleared = mountpoints.clear_stale(found.mountpoint)
        output.note(f"the daemon of {mountpoint} was dead; {cleared} dead mount(s) taken away")
        return
    if daemon is None:
        mountpoints.unmount(found.mountpoint)
        return
    running = daemon.running
    ends = [live.ProcessEnd(pid) for pid in (running.pid, running.supervisor) if pid]
    try:
        mountpoints.unmount(found.mountpoint)
        if not all(end.wait(WAITING_S) for end in ends):
            _tell_who_has_copies(found)
        for end in ends:
            end.wait()
    finally:
        for end in ends:
            end.close()


def _tell_who_has_copies(mount: mountpoints.Mount) -> None:
    """Say why the daemon of what was just unmounted goes on, if others still have the mount."""
    others = mountpoints.who_has_copies(mount)
    if others:
        named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if others[3:] else "")
        output.note(
            f"{mount.mountpoint} is unmounted here, but still mounted in the mount namespace of "
            f"process {named}: waiting until that ends (Ctrl-C: do not wait)"
        )


COMMANDS: list[click.Command] = [mount, umount]
