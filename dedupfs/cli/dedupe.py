"""The command dedupe: the duplicates below a directory become links to one copy in the store.

Specified in docs/cli.md.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import DRY_RUN, JSON, STORE, completed_with, open_store
from dedupfs.cli.problems import print_problems, problems_json
from dedupfs.errors import SourceError, UsageError

if TYPE_CHECKING:
    from dedupfs.checkout.dedupe.run import DedupeReport
    from dedupfs.checkout.dedupe.scan import Found, Group
    from dedupfs.checkout.dedupe.undo import UndoReport

GROUPS_SHOWN_MAX = 20
LINKS = ("auto", "reflink", "hardlink", "symlink")


@click.command()
@STORE
@click.argument(
    "directory", type=click.Path(path_type=Path), shell_complete=completed_with("directory")
)
@click.option(
    "--link",
    type=click.Choice(LINKS),
    default="auto",
    help="What a duplicate becomes; auto: the first of these that can be had.",
)
@click.option("--min-size", default="1MiB", metavar="SIZE", help="Leave smaller files alone.")
@click.option("--name", metavar="NAME", help="Name of the snapshot of what was replaced.")
@click.option(
    "--ignore-attributes", is_flag=True, help="Hard-link files of other modes and xattrs, too."
)
@click.option("--forget", is_flag=True, help="Let go of what has no link in DIRECTORY any more.")
@click.option("--undo", is_flag=True, help="Make everything plain files again.")
@DRY_RUN
@JSON
def dedupe(
    store: Path,
    directory: Path,
    link: str,
    min_size: str,
    name: str | None,
    ignore_attributes: bool,
    forget: bool,
    undo: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Replace equal files below DIRECTORY by links to one copy of them in STORE.

    Finds files of equal content, has one of them become a part of the store (on the store's own
    file system without copying a byte), and replaces the others, each compared byte by byte first:
    by files that share its blocks (reflink: XFS, btrfs), by read-only hard links, or by symbolic
    links. Interrupted, it goes on the next time; --undo makes all of them plain files again, with
    the modes, owners, times and attributes that they had.

    \b
    Examples:
      dedupfs dedupe store/ ckpts/ --dry-run
      dedupfs dedupe store/ ckpts/
      dedupfs dedupe --undo store/ ckpts/
    """
    from dedupfs.checkout.dedupe.run import DedupeOptions, plan
    from dedupfs.checkout.dedupe.run import dedupe as run
    from dedupfs.checkout.dedupe.take import Link
    from dedupfs.checkout.dedupe.undo import undo as run_undo

    if undo:
        if link != "auto" or name is not None or ignore_attributes:
            raise UsageError("--undo knows what was done: give it no --link, --name or attributes")
        with open_store(store) as opened, output.meter("restoring") as bar:
            undone = run_undo(
                opened, directory, dry_run=dry_run, forget=forget, progress=output.shown_on(bar)
            )
        _finish_undo(undone, dry_run, as_json)
        return
    options = DedupeOptions(
        Link(link), output.parse_size(min_size), name, ignore_attributes, forget
    )
    with open_store(store) as opened, output.meter("deduping") as bar:
        if dry_run:
            found = plan(opened, directory, options, output.shown_on(bar))
        else:
            report = run(opened, directory, options, progress=output.shown_on(bar))
    if dry_run:
        _print_plan(found, as_json)
    else:
        _finish(report, as_json)


def _print_plan(found: "Found", as_json: bool) -> None:
    if as_json:
        output.print_json(_plan_json(found))
        return
    rows = [
        (
            output.size(group.duplicate_bytes),
            f"{len(group.duplicates)} of {len(group.inodes)}",
            output.size(group.size),
            output.text_of(group.inodes[0].paths[0]),
        )
        for group in found.groups[:GROUPS_SHOWN_MAX]
        if group.duplicates
    ]
    output.print_table(("FREES", "COPIES", "SIZE", "FIRST"), rows, right=(0, 1, 2))
    more = sum(1 for group in found.groups if group.duplicates) - len(rows)
    if more > 0:
        output.print_line(f"and {more} more; --json lists all of them")
    output.print_line(_summary(found))
    print_problems(found.skipped)


def _summary(found: "Found") -> str:
    duplicates = sum(len(group.duplicates) for group in found.groups)
    return (
        f"{output.count_text(found.files, 'file')}, {output.size(found.size_bytes)}: "
        f"{output.count_text(duplicates, 'duplicate')} of {output.size(found.duplicate_bytes)}; "
        f"{output.size(found.shared_bytes)} shared already, {found.unique:,} without a double, "
        f"{found.small:,} smaller than --min-size"
    )


def _plan_json(found: "Found") -> dict[str, output.Json]:
    return {
        "files": found.files,
        "size_bytes": found.size_bytes,
        "duplicate_bytes": found.duplicate_bytes,
        "shared_bytes": found.shared_bytes,
        "unique": found.unique,
        "small": found.small,
        "groups": [_group_json(group) for group in found.groups],
        "skipped": problems_json(found.skipped),
    }


def _group_json(group: "Group") -> output.Json:
    return {
        "size_bytes": group.size,
        "duplicates": len(group.duplicates),
        "duplicate_bytes": group.duplicate_bytes,
        "paths": [output.text_of(path) for inode in group.inodes for path in inode.paths],
    }


def _finish(report: "DedupeReport", as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                **_plan_json(report.found),
                "link": str(report.link),
                "snapshot": report.snapshot,
                "checkout": report.number,
                "replaced": report.replaced,
                "kept": report.kept,
                "freed_bytes": report.freed_bytes,
                "other_times": report.other_times,
                "seconds": round(report.seconds, 3),
                "problems": problems_json(report.problems),
            }
        )
        return
    print_problems(report.problems)
    output.print_line(_summary(report.found))
    if not report.number:
        output.print_line("nothing to replace")
        return
    output.print_line(
        f"replaced {output.count_text(report.replaced, 'file')} ({report.link}), "
        f"{output.size(report.freed_bytes)} freed in {report.seconds:.1f} s; "
        f"snapshot {report.snapshot}"
    )
    if report.other_times:
        output.note(
            f"{output.count_text(report.other_times, 'hard link')} with the time of the copy that "
            "stays; --undo gives each its own back"
        )


def _finish_undo(report: "UndoReport", dry_run: bool, as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                "restored": report.restored,
                "restored_bytes": report.restored_bytes,
                "independent": report.independent,
                "needed_bytes": report.needed_bytes,
                "complete": report.is_complete,
                "problems": problems_json(report.problems),
            }
        )
    else:
        print_problems(report.problems)
        if dry_run:
            output.print_line(f"to undo takes {output.size(report.needed_bytes)}")
        else:
            output.print_line(
                f"restored {output.count_text(report.restored, 'file')}, "
                f"{output.size(report.restored_bytes)}; {report.independent:,} that share blocks "
                "are plain files already"
            )
    if not dry_run and not report.is_complete:
        raise SourceError("not everything could be restored; what was not is kept: run it again")


COMMANDS: list[click.Command] = [dedupe]
