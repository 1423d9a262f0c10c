"""The command limit: how much a store, or a view of it, may take.

Knows how to ask and to print; what counts is ``store/limits.py``'s and ``namespace/quota.py``'s.
Specified in docs/cli.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import JSON, STORE, completed_with, open_store
from dedupfs.errors import CorruptError, DedupfsError, NotFoundError, StoreError

if TYPE_CHECKING:
    from dedupfs.store import Store

NO_LIMIT = "none"


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit and what counts against it; None: no limit, or the use cannot be counted."""

    limit_bytes: int | None
    use_bytes: int | None

    @property
    def left_bytes(self) -> int | None:
        """What may still be added."""
        if self.limit_bytes is None or self.use_bytes is None:
            return None
        return max(0, self.limit_bytes - self.use_bytes)


def view_budget(store: "Store", name: str, *, counted: bool = True) -> Budget:
    """Return a view's limit and use; the use is not counted for nothing unless asked for.

    Raises:
        NotFoundError: no such view.
    """
    from dedupfs.namespace.quota import view_use
    from dedupfs.namespace.views import find_view, view_directory
    from dedupfs.store.limits import read_limit

    limit_bytes = read_limit(store.disk, view_directory(store.path, name))
    for _attempt in range(3):  # a live view may fold, and free what it held, while we count
        row = find_view(store, name)
        if row is None:
            raise NotFoundError(f"no view {name!r} in {store.path}")
        if not counted and limit_bytes is None:
            return Budget(None, None)
        try:
            return Budget(limit_bytes, view_use(store, row))
        except StoreError:
            continue
    return Budget(limit_bytes, None)


def store_budget(store: "Store") -> Budget:
    """Return the store's limit and use."""
    from dedupfs.store.limits import read_limit, store_use

    return Budget(read_limit(store.disk, store.path), store_use(store))


@click.command()
@STORE
@click.argument("size", required=False, metavar="[SIZE|none]")
@click.option(
    "--view",
    metavar="V",
    shell_complete=completed_with("view"),
    help="Limit this view, not the whole store.",
)
@JSON
def limit(store: Path, size: str | None, view: str | None, as_json: bool) -> None:
    """Show or set how many bytes STORE, or a view of it, may take.

    Who goes over a limit gets EDQUOT; reading and deleting go on. Live mounts take a new limit
    over at once, and it may be less than what is used already.

    \b
    Examples:
      dedupfs limit store/ 500GiB
      dedupfs limit store/ 20GiB --view job17
      dedupfs limit store/ none --view job17
    """
    with open_store(store) as opened:
        if size is not None:
            _set(opened, view, None if size == NO_LIMIT else output.parse_size(size))
            _tell_daemons(store, view)
        if view is not None:
            _fold(
                store, view
            )  # what was deleted, or turned out to be there already, counts no more
        budget = store_budget(opened) if view is None else view_budget(opened, view)
    if as_json:
        output.print_json(
            {
                "view": view,
                "limit_bytes": budget.limit_bytes,
                "used_bytes": budget.use_bytes,
                "left_bytes": budget.left_bytes,
            }
        )
        return
    output.print_fields(
        [
            ("limit", size_or(budget.limit_bytes, NO_LIMIT)),
            ("used", size_or(budget.use_bytes, "?")),
            ("left", size_or(budget.left_bytes, "-")),
        ]
    )


def size_or(count: int | None, text: str) -> str:
    """Return a size, or ``text`` where there is none."""
    return text if count is None else output.size(count)


def budget_text(budget: Budget) -> str:
    """Return a limit and its use in one line."""
    if budget.limit_bytes is None:
        return NO_LIMIT
    return f"{output.size(budget.limit_bytes)}, {size_or(budget.use_bytes, '?')} used"


def _set(store: "Store", view: str | None, limit_bytes: int | None) -> None:
    from dedupfs.namespace.rows import check_name
    from dedupfs.namespace.views import find_view, view_directory
    from dedupfs.store.limits import write_limit

    directory = store.path
    if view is not None:
        check_name(view, "view")
        if find_view(store, view) is None:
            raise NotFoundError(f"no view {view!r} in {store.path}")
        directory = view_directory(store.path, view)
    write_limit(store.disk, directory, limit_bytes)


def _fold(store: Path, view: str) -> None:
    from dedupfs.namespace import live

    daemon = live.daemon_of_view(store, view)
    if daemon is not None:
        live.ask(daemon.socket_path, live.Fold())


def _tell_daemons(store: Path, view: str | None) -> None:
    """Have live views take the limit over; the others find it when they are mounted."""
    from dedupfs.namespace import live

    for daemon in live.daemons(store):
        if daemon.running.read_only or view not in (None, daemon.running.view):
            continue
        try:
            live.ask(daemon.socket_path, live.LookAtLimits(), timeout_s=live.STATUS_TIMEOUT_S)
        except CorruptError:
            raise
        except DedupfsError as exc:
            output.note(f"{daemon.running.mountpoint} goes by the limit when mounted again: {exc}")


COMMANDS: list[click.Command] = [limit]
