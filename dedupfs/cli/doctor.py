"""The command doctor: what this machine, and the disk below a store, lack. See docs/cli.md."""

import os
from pathlib import Path

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import JSON, completed_with
from dedupfs.errors import UsageError


@click.command()
@click.argument(
    "store",
    required=False,
    type=click.Path(path_type=Path, readable=False),
    shell_complete=completed_with("directory"),
)
@JSON
@click.pass_context
def doctor(ctx: click.Context, store: Path | None, as_json: bool) -> None:
    """Look at this machine, and at the file system of STORE, and say what is slow or missing.

    STORE need not exist yet. The exit code is 1 when something does not work at all.

    \b
    Examples:
      dedupfs doctor
      dedupfs doctor store/ --json
    """
    from dedupfs.fuse import mountpoints
    from dedupfs.maintenance.findings import Grade
    from dedupfs.maintenance.ground import existing, look_at_ground
    from dedupfs.maintenance.machine import look_at_machine

    found = list(look_at_machine())
    if store is not None:
        if os.path.exists(store) and not os.path.isdir(store):
            raise UsageError(f"{store} is not a directory")
        mount = mountpoints.mount_containing(Path(os.path.realpath(existing(store))))
        found += look_at_ground(store, mount.fs_type if mount else "unknown")
    if as_json:
        output.print_json(
            [
                {
                    "name": finding.name,
                    "grade": finding.grade.value,
                    "said": finding.said,
                    "advice": finding.advice or None,
                }
                for finding in found
            ]
        )
    else:
        width = max(len(finding.name) for finding in found)
        for finding in found:
            output.print_line(
                f"{finding.grade.value:<5}  {finding.name.ljust(width)}  {finding.said}"
            )
            if finding.advice:
                output.print_line(f"{' ' * (width + 9)}-> {finding.advice}")
    if any(finding.grade is Grade.FAULT for finding in found):
        ctx.exit(1)


COMMANDS: list[click.Command] = [doctor]
