"""The command view: list, compare and remove the views of a store. Specified in docs/cli.md."""

from pathlib import Path

import click

from dedupfs.cli import changes, output
from dedupfs.cli.arguments import DRY_RUN, JSON, STORE, completed_with, open_store
from dedupfs.errors import UsageError


@click.group()
def view() -> None:
    """List, compare and remove the views of a store.

    A view holds what was written, changed and removed in a mount; the snapshots below never change.
    It is kept when it is unmounted, and mount --view goes on with it. commit makes a snapshot of
    it; rm removes it and frees what it alone holds.

    \b
    Examples:
      dedupfs view list store/
      dedupfs view diff store/ job17
      dedupfs view rm store/ job17
    """


@view.command("list")
@STORE
@JSON
def list_(store: Path, as_json: bool) -> None:
    """List the views of STORE, where they are mounted, and what limited ones hold of their own.

    \b
    Example:
      dedupfs view list store/
    """
    from dedupfs.cli.limits import size_or, view_budget
    from dedupfs.namespace.views import list_views, view_owner

    with open_store(store) as opened:
        found = [
            (row, view_owner(opened, row.name), view_budget(opened, row.name, counted=False))
            for row in list_views(opened)
        ]
    if as_json:
        output.print_json_array(
            {
                "name": row.name,
                "base": row.base or None,
                "created_ns": row.created_ns,
                "pid": owner.pid if owner else None,
                "mountpoint": owner.mountpoint if owner else None,
                "limit_bytes": budget.limit_bytes,
                "used_bytes": budget.use_bytes,
            }
            for row, owner, budget in found
        )
        return
    output.print_table(
        ("VIEW", "BASE", "CREATED", "LIMIT", "USED", "PID", "MOUNTED ON"),
        [
            (
                row.name,
                row.base or "(all snapshots)",
                output.time_text(row.created_ns),
                size_or(budget.limit_bytes, ""),
                size_or(budget.use_bytes, ""),
                str(owner.pid) if owner else "",
                owner.mountpoint if owner else "",
            )
            for row, owner, budget in found
        ],
    )


@view.command()
@STORE
@click.argument(
    "names",
    metavar="NAME...",
    nargs=-1,
    required=True,
    shell_complete=completed_with("view"),
)
@DRY_RUN
def rm(store: Path, names: tuple[str, ...], dry_run: bool) -> None:
    """Remove views of STORE with all that was written into them; snapshots stay.

    \b
    Example:
      dedupfs view rm store/ job17
    """
    from dedupfs.namespace.views import list_views, remove_view

    with open_store(store) as opened:
        known = {row.name for row in list_views(opened)}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UsageError(f"no view {', '.join(unknown)} in {store}")
        for name in names:
            if not dry_run:
                remove_view(opened, name)
            output.print_line(f"{'would remove' if dry_run else 'removed'} view {name}")
        if dry_run:
            from dedupfs.maintenance.usage import exclusive_bytes

            freed = exclusive_bytes(opened, (), names).disk_bytes
            output.print_line(f"would give {output.size(freed)} back to the disk, with the next gc")


view.add_command(changes.diff)

COMMANDS: list[click.Command] = [view]
