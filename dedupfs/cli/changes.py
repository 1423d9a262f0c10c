"""The command ``view diff``: what a view changed against what it was made over.

Specified in docs/cli.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dedupfs.cli.arguments import JSON, STORE, completed_with, open_store
from dedupfs.cli.browsing import print_differences
from dedupfs.errors import NotFoundError
from dedupfs.fuse import mountpoints
from dedupfs.namespace import live

if TYPE_CHECKING:
    from dedupfs.store import Store


@click.command()
@STORE
@click.argument("name", metavar="VIEW", shell_complete=completed_with("view"))
@click.option("--exit-code", is_flag=True, help="Exit with 1 when there are changes.")
@JSON
@click.pass_context
def diff(ctx: click.Context, store: Path, name: str, exit_code: bool, as_json: bool) -> None:
    """Show what VIEW changed against its snapshot, or against all snapshots of STORE.

    A line a path: + added, - removed, M content, m only metadata, T another type. A snapshot that
    the view hides is one line. What is written to a mounted view is put away first.

    \b
    Examples:
      dedupfs view diff store/ job17
      dedupfs view diff store/ default --json
    """
    from dedupfs.transfer.changes import held_root, view_changes

    with open_store(store) as opened, _folded(opened, name), held_root(opened, name) as root:
        differs = print_differences(view_changes(opened, root), as_json=as_json)
    if differs and exit_code:
        ctx.exit(1)


@contextmanager
def _folded(store: "Store", name: str) -> Iterator[None]:
    """Have all that was done in a view turned into trees, by its daemon if it is mounted."""
    daemon = live.daemon_of_view(store.path, name)
    if daemon is not None:
        mountpoints.write_back(Path(daemon.running.mountpoint))
        live.ask(daemon.socket_path, live.Fold())
        yield
        return
    from dedupfs.namespace.view import View
    from dedupfs.namespace.views import find_view

    if find_view(store, name) is None:
        raise NotFoundError(f"no view {name!r} in {store.path}")
    view = View.bring_back(store, name)
    try:
        view.fold()
        yield
    finally:
        view.close()
