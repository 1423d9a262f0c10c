"""The command commit: a view, or a directory of a mount, becomes a snapshot.

Its daemon does it when there is one. Specified in docs/cli.md.
"""

import os
import time
from pathlib import Path

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import DEFAULT_VIEW, TAG, completed_with, parse_tags
from dedupfs.errors import MountError, StoreBusyError, UsageError
from dedupfs.fuse import mountpoints
from dedupfs.namespace import live

STARTING_S = 3.0
"""How long a daemon may have a view without answering for it ..."""
STARTING_STEP_S = 0.05
"""... and how soon it is asked again."""


@click.command()
@click.argument(
    "where",
    metavar="STORE|DIRECTORY",
    type=click.Path(path_type=Path),
    shell_complete=completed_with("directory"),
)
@click.argument("name")
@click.option(
    "--view",
    metavar="V",
    shell_complete=completed_with("view"),
    help="The view to freeze (default: 'default').",
)
@click.option("--path", "subdirectory", metavar="SUBDIR", help="Freeze only this directory of it.")
@TAG
@click.option(
    "--upper",
    type=click.Path(path_type=Path),
    shell_complete=completed_with("directory"),
    help="Take in what a run's commit has left here.",
)
def commit(
    where: Path,
    name: str,
    view: str | None,
    subdirectory: str | None,
    tags: tuple[str, ...],
    upper: Path | None,
) -> None:
    """Freeze a view as snapshot NAME, or the DIRECTORY of a mount.

    \b
    Examples:
      dedupfs commit store/ night-2 --view job17 --path out --tag branch=main
      dedupfs commit /workspace/ckpts/step-2000 step-2000
    """
    request = live.Commit(name, os.fsencode(subdirectory or ""), parse_tags(tags))
    found = mountpoints.mount_containing(Path(os.path.realpath(where)))
    if upper is not None:
        if view is not None or subdirectory is not None:
            raise UsageError("--upper goes without --view and --path")
        from dedupfs.cli import scratch

        info = scratch.take_in_kept(where, upper, name, request.tags)
        done = live.Committed(info.name, info.root.count, info.root.size)
    elif found is not None and found.is_ours:
        if view is not None or subdirectory is not None:
            raise UsageError("--view and --path go with a STORE; a DIRECTORY says both itself")
        done = _commit_directory(found, Path(os.path.realpath(where)), request)
    else:
        done = _commit_view(where, view or DEFAULT_VIEW, request)
    size = output.size(done.logical_bytes)
    count = "1 entry" if done.entries == 1 else f"{done.entries:,} entries"
    output.print_line(f"{done.name}: {count}, {size}")


def _commit_directory(
    found: mountpoints.Mount, directory: Path, request: live.Commit
) -> live.Committed:
    daemon = live.daemon_at(Path(found.source), found.mountpoint)
    if daemon is None:
        raise MountError(f"no daemon answers for {found.mountpoint}: unmount it and mount it again")
    inside = directory.relative_to(found.mountpoint)
    path = b"" if inside == Path() else os.fsencode(inside)
    return _commit_live(daemon, live.Commit(request.name, path, request.tags))


def _commit_view(store_path: Path, view: str, request: live.Commit) -> live.Committed:
    """Have the view's daemon do it, or do it here when there is none.

    One that is just beginning to serve the view, as in a takeover, has it but does not answer yet.
    """
    until_s = time.monotonic() + STARTING_S
    while True:
        daemon = live.daemon_of_view(store_path, view)
        if daemon is not None:
            return _commit_live(daemon, request)
        try:
            return _commit_here(store_path, view, request)
        except StoreBusyError:
            if time.monotonic() >= until_s:
                raise
            time.sleep(STARTING_STEP_S)


def _commit_here(store_path: Path, view: str, request: live.Commit) -> live.Committed:
    from dedupfs.namespace.view import View
    from dedupfs.namespace.views import find_view
    from dedupfs.store.store import Store

    try:
        opened_store = Store.open(store_path)
    except UsageError as exc:
        raise UsageError(
            f"{store_path} is neither in a mount of dedupfs nor a store: {exc}"
        ) from exc
    with opened_store as store:
        if find_view(store, view) is None:
            raise UsageError(f"no view {view} in {store_path}")
        opened = View.bring_back(store, view)
        try:
            info = opened.commit(
                request.name, path=request.path, tags=request.tags, created_ns=time.time_ns()
            )
        finally:
            opened.close()
    return live.Committed(info.name, info.root.count, info.root.size)


def _commit_live(daemon: live.Daemon, request: live.Commit) -> live.Committed:
    mountpoints.write_back(Path(daemon.running.mountpoint))
    reply = live.ask(daemon.socket_path, request)
    assert isinstance(reply, live.Committed)
    return reply


COMMANDS: list[click.Command] = [commit]
