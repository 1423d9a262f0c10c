"""The group of all commands. Loads a command's module only when that command runs.

So ``dedupfs --help`` is quick, and a missing library breaks only the commands that need it.
"""

import importlib
import os
from typing import TYPE_CHECKING

import click

from dedupfs import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SNAPSHOTS = "dedupfs.cli.snapshots"
BROWSING = "dedupfs.cli.browsing"
TRANSFERS = "dedupfs.cli.transfers"
STORES = "dedupfs.cli.stores"
COLLECTING = "dedupfs.cli.collecting"
MOUNTS = "dedupfs.cli.mounts"
COMMITS = "dedupfs.cli.commits"
VIEWS = "dedupfs.cli.views"
SPACE = "dedupfs.cli.space"
PRUNE = "dedupfs.cli.prune"
REPORT = "dedupfs.cli.report"
DEDUPE = "dedupfs.cli.dedupe"
CHECKPOINTS = "dedupfs.cli.checkpoints"
LIMITS = "dedupfs.cli.limits"
RUN = "dedupfs.cli.run"
TOP = "dedupfs.cli.top"
STATUS = "dedupfs.cli.status"
METRICS = "dedupfs.cli.metrics"
DOCTOR = "dedupfs.cli.doctor"
MAN = "dedupfs.cli.man"
COMPLETION = "dedupfs.cli.completion"
CHECKOUTS = "dedupfs.cli.checkouts"
VOLUMES = "dedupfs.cli.volumes"

Section = dict[str, tuple[str, str]]

SECTIONS: dict[str, Section] = {
    "In and out": {
        "import": (TRANSFERS, "Make a snapshot of a directory."),
        "export": (TRANSFERS, "Restore a snapshot to a directory or a tar stream."),
        "checkout": (CHECKOUTS, "Make a snapshot a plain directory of links, without FUSE."),
        "dedupe": (DEDUPE, "Replace equal files of a directory by links to one copy."),
    },
    "Mounts and views": {
        "mount": (MOUNTS, "Mount a view of a store."),
        "umount": (MOUNTS, "Unmount and wait until all is put away."),
        "commit": (COMMITS, "Freeze a view, or a directory of a mount, as a snapshot."),
        "view": (VIEWS, "List, compare and remove the views of a store."),
        "status": (STATUS, "Show who has what mounted since when."),
        "run": (RUN, "Run a command in a private view of a snapshot."),
        "top": (TOP, "Show what mounts are doing."),
        "metrics": (METRICS, "Print the numbers of stores and mounts for Prometheus."),
        "volume-plugin": (VOLUMES, "Give views to Docker or Podman as volumes."),
    },
    "Snapshots": {
        "ls": (BROWSING, "List snapshots, or a directory of one."),
        "cat": (BROWSING, "Print files of a snapshot."),
        "find": (BROWSING, "Find names in snapshots."),
        "diff": (BROWSING, "Show what differs between two snapshots."),
        "clone": (SNAPSHOTS, "Make a second snapshot of the same content."),
        "rename": (SNAPSHOTS, "Give a snapshot another name."),
        "tag": (SNAPSHOTS, "Show or change a snapshot's tags."),
        "pin": (SNAPSHOTS, "Protect snapshots from removal."),
        "unpin": (SNAPSHOTS, "End the protection of snapshots."),
        "rm": (SNAPSHOTS, "Remove snapshots and free their space."),
        "prune": (PRUNE, "Remove the snapshots that no rule keeps."),
        "prune-files": (CHECKPOINTS, "Remove large files of checkpoints that no rule keeps."),
    },
    "The store": {
        "init": (STORES, "Make an empty store."),
        "stats": (SPACE, "Show what a store holds and takes."),
        "du": (SPACE, "Show what each snapshot and view takes."),
        "report": (REPORT, "Draw a store as one HTML page."),
        "limit": (LIMITS, "Show or set how much a store or a view may take."),
        "gc": (COLLECTING, "Free the space of what nothing refers to."),
        "check": (STORES, "Verify that index, packs and trees agree."),
        "scrub": (STORES, "Read everything and verify each byte."),
        "reindex": (STORES, "Rebuild the index from the packs."),
    },
    "The machine": {
        "doctor": (DOCTOR, "Say what this machine lacks for mounts and a store."),
        "completion": (COMPLETION, "Print the script that completes commands in a shell."),
        "man": (MAN, "Write the manual pages."),
    },
}
COMMANDS: Section = {
    name: place for section in SECTIONS.values() for name, place in section.items()
}

HIDDEN: Section = {
    "go-on": ("dedupfs.cli.upgrade", "Take a mount over from another program."),
    "volume-workers": (VOLUMES, "Mount and unmount for the volume plugin."),
}


class LazyGroup(click.Group):
    """Commands by name, imported on use, listed by section (but for the hidden ones)."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return all names, without importing anything."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return the command."""
        place = COMMANDS.get(cmd_name) or HIDDEN.get(cmd_name)
        if place is None:
            return None
        module = importlib.import_module(place[0])
        commands: list[click.Command] = module.COMMANDS
        return next((command for command in commands if command.name == cmd_name), None)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Return the names that begin so, without importing anything, or the options."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=about)
            for name, (_, about) in COMMANDS.items()
            if name.startswith(incomplete)
        ]

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of the help text from the table above."""
        width = max(map(len, COMMANDS))
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(name.ljust(width), text) for name, (_, text) in section.items()]
                )


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"dedupfs {__version__}")
        ctx.exit()


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, envvar="DEDUPFS_DEBUG", help="Log, and show tracebacks.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
def app(debug: bool) -> None:
    """One deduplicated store of snapshots, mounted as any number of isolated writable views.

    \b
    Example:
      dedupfs init store/
      dedupfs import store/ /data/ckpt-1000 step-1000
      dedupfs mount store/ /mnt
      dedupfs umount /mnt
    """
    import logging

    from dedupfs.cli.output import log_to_stderr

    os.umask(os.umask(0o077) & 0o077)  # or we could not open ourselves what we have made
    log_to_stderr(
        logging.DEBUG if debug else logging.WARNING,
        "dedupfs: %(name)s: %(message)s" if debug else "dedupfs: %(message)s",
    )
