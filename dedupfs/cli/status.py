"""The command status: who has what mounted since when, and what became of it. Knows no store."""

from pathlib import Path

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import JSON, STORES
from dedupfs.cli.watching import Mounted, State, find_mounted, require_directories, user_name

_HEAD = ("MOUNTED ON", "STORE", "VIEW", "USER", "SINCE", "PID", "STATE")
_TO_MEND = (State.DEAD, State.SILENT)


@click.command()
@STORES
@JSON
@click.pass_context
def status(ctx: click.Context, stores: tuple[Path, ...], as_json: bool) -> None:
    """Show who has what mounted since when: of each STORE, or of all stores.

    It touches no mount and waits for none longer than a few seconds. STATE is live; copy, a bind
    mount of a live one; dead, without daemon and supervisor; silent, with no answer; hidden, of
    another user, whose daemon you may not ask; elsewhere, in another mount namespace, such as a
    container's. The exit code is 1 when a mount is dead or silent; the last lines say what to do.

    \b
    Examples:
      dedupfs status
      dedupfs status store/ --json
    """
    require_directories(stores)
    found = find_mounted(stores)
    if as_json:
        output.print_json([_json(mounted) for mounted in found])
    elif found:
        output.print_table(_HEAD, [_row(mounted) for mounted in found], right=(5,))
    else:
        output.print_line("nothing is mounted")
    for mounted in found:
        if mounted.advice:
            output.note(f"{mounted.mountpoint}: {mounted.advice}")
    if any(mounted.state in _TO_MEND for mounted in found):
        ctx.exit(1)


def _row(mounted: Mounted) -> tuple[str, ...]:
    running = mounted.running
    return (
        str(mounted.mountpoint),
        str(mounted.store),
        _view(mounted),
        user_name(mounted.user),
        output.time_text(running.since_ns) if running and running.since_ns else "",
        str(running.pid) if running else "",
        mounted.state.value,
    )


def _view(mounted: Mounted) -> str:
    """Return what is mounted in a few words."""
    running = mounted.running
    if running is None:
        return ""
    if running.read_only:
        return f"{running.snapshot} (read-only)".strip()
    name = "(ephemeral)" if running.ephemeral else running.view
    return f"{name} of {running.snapshot}" if running.snapshot else name


def _json(mounted: Mounted) -> dict[str, output.Json]:
    running = mounted.running
    return {
        "mountpoint": str(mounted.mountpoint),
        "store": str(mounted.store),
        "state": mounted.state.value,
        "user": user_name(mounted.user) or None,
        "uid": mounted.user,
        "allow_other": mounted.allow_other,
        "view": running.view or None if running else None,
        "snapshot": running.snapshot or None if running else None,
        "read_only": running.read_only if running else None,
        "ephemeral": running.ephemeral if running else None,
        "since_ns": running.since_ns or None if running else None,
        "pid": running.pid if running else None,
        "supervisor": running.supervisor or None if running else None,
        "metrics": running.metrics or None if running else None,
        "advice": mounted.advice or None,
    }


COMMANDS: list[click.Command] = [status]
