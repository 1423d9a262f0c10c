"""The command checkout: makes snapshots plain directories, without FUSE, updates and removes them.

Specified in docs/cli.md.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dedupfs.cli import inspecting, output
from dedupfs.cli.arguments import (
    DRY_RUN,
    JSON,
    STORE,
    completed_with,
    find_directory,
    open_store,
    snapshot_argument,
)
from dedupfs.cli.problems import Complaints, problems_json
from dedupfs.cli.registered import IN_STORE, checkout_at
from dedupfs.errors import CorruptError, SourceError, UsageError

if TYPE_CHECKING:
    from dedupfs.checkout.make import What
    from dedupfs.checkout.objects import CheckoutReport
    from dedupfs.store import Store
    from dedupfs.transfer.report import Problem

LINKS = ["symlink", "hardlink", "reflink", "copy", "auto"]
KEPT_SHOWN_MAX = 100

DIRECTORY = click.argument(
    "directory", type=click.Path(path_type=Path), shell_complete=completed_with("directory")
)
SMALLER = click.option(
    "--link-min", metavar="SIZE", help="Copy smaller files (default: what makes a pack, 8 MiB)."
)


class _Checkouts(click.Group):
    """``checkout STORE SNAPSHOT DIR`` makes one; the other words are commands of their own."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Take anything that is no command for the arguments of ``make``."""
        if args and args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return "make", self.commands["make"], args

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave options in front of STORE to ``make``, too."""
        if args and args[0].startswith("-") and args[0] not in ("-h", "--help"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Checkouts)
def checkout() -> None:
    """Make a snapshot a plain directory, without FUSE; verify, update and remove it.

    `dedupfs checkout STORE SNAPSHOT[:PATH] DIR [--link MODE]` makes one. Large files become links
    to the one copy in the store (or share blocks with it), small ones are copies.

    \b
    Examples:
      dedupfs checkout store/ step-1000 /data/model
      dedupfs checkout store/ step-1000 /data/model --link symlink
      dedupfs checkout verify /data/model
      dedupfs checkout update /data/model step-2000
      dedupfs checkout rm /data/model
    """


@checkout.command(hidden=True)
@STORE
@snapshot_argument("where", "SNAPSHOT[:PATH]")
@click.argument(
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    shell_complete=completed_with("directory"),
)
@click.option("--link", type=click.Choice(LINKS), default="auto", help="How large files are made.")
@SMALLER
@JSON
def make(
    store: Path, where: str, directory: Path, link: str, link_min: str | None, as_json: bool
) -> None:
    """Make the new directory DIR show a snapshot, or a directory of one.

    \b
    Example:
      dedupfs checkout store/ step-1000 /data/model --link hardlink
    """
    from dedupfs.checkout.make import make_checkout

    least = output.parse_size(link_min) if link_min is not None else None
    with open_store(store) as opened:
        report = make_checkout(
            opened,
            _what(opened, where),
            directory,
            link,
            bytes_min=least,
            on_error=Complaints(),
        )
    _print_made(directory, report, as_json)


@checkout.command()
@DIRECTORY
@snapshot_argument("where", "SNAPSHOT[:PATH]", required=False)
@click.option("--link", type=click.Choice(LINKS), help="Make links of another kind.")
@SMALLER
@click.option("--force", is_flag=True, help="Overwrite what was changed in the directory.")
@IN_STORE
@JSON
def update(
    directory: Path,
    where: str | None,
    link: str | None,
    link_min: str | None,
    force: bool,
    store_path: Path | None,
    as_json: bool,
) -> None:
    """Make the checkout DIRECTORY show another snapshot, touching only what differs.

    Without SNAPSHOT: end what was interrupted, or make again what is missing. Files that were
    changed there are not overwritten: nothing is done then, unless --force.

    \b
    Examples:
      dedupfs checkout update /data/model step-2000
      dedupfs checkout update /data/model --link copy
    """
    from dedupfs.checkout.make import update_checkout
    from dedupfs.namespace.checkouts import open_checkout

    least = output.parse_size(link_min) if link_min is not None else None
    with checkout_at(directory, store_path) as (opened, manifest):
        what = _what(opened, where) if where is not None else None
        with open_checkout(opened, manifest.number) as registration:
            report = update_checkout(
                opened,
                registration,
                directory,
                what,
                link,
                bytes_min=least,
                force=force,
                on_error=Complaints(),
            )
    _print_made(directory, report, as_json)


@checkout.command("rm")
@click.argument("place", metavar="DIR|NUMBER", shell_complete=completed_with("checkout"))
@DRY_RUN
@click.option("--keep-files", is_flag=True, help="Leave the directory as it is; no symlinks.")
@click.option("--force", is_flag=True, help="Remove what was changed in the directory, too.")
@click.option("--gone", is_flag=True, help="Forget a deduped directory that was deleted.")
@IN_STORE
@JSON
def remove(
    place: str,
    dry_run: bool,
    keep_files: bool,
    force: bool,
    gone: bool,
    store_path: Path | None,
    as_json: bool,
) -> None:
    """Remove a checkout: what it made goes, what others added or changed there stays.

    What only it held in the store is freed by the next gc. A directory that is gone is named as it
    was, or by the checkout's NUMBER, with --store. --gone is for a directory that was deduped and
    then deleted: its snapshot stays, and keeps everything until 'dedupfs rm'.

    \b
    Examples:
      dedupfs checkout rm /data/model
      dedupfs checkout rm --store store/ 3
      dedupfs checkout rm --gone --store store/ 4
    """
    if gone:
        if keep_files or dry_run:
            raise UsageError("--gone changes no file, and frees nothing: give it no other option")
        _forget_deduped(place, store_path, force=force, as_json=as_json)
        return
    from dedupfs.checkout.make import remove_checkout
    from dedupfs.checkout.place import is_there
    from dedupfs.checkout.savings import freed_bytes
    from dedupfs.namespace.checkouts import open_checkout

    kept: list[str] = []
    problems: list[Problem] = []
    with checkout_at(Path(place), store_path) as (opened, manifest):
        freed = freed_bytes(opened, manifest)
        directory: Path | None = Path(place)
        if not Path(place).is_dir():
            made = Path(os.fsdecode(manifest.directory))
            directory = made if is_there(manifest) else None
        if not dry_run:
            with open_checkout(opened, manifest.number) as registration:
                report = remove_checkout(
                    opened,
                    registration,
                    directory,
                    keep_files=keep_files,
                    force=force,
                    on_error=Complaints(),
                )
            kept = [output.text_of(path) for path in report.kept]
            problems = report.problems
    if as_json:
        output.print_json(
            {
                "number": manifest.number,
                "freed_bytes": 0 if problems else freed,
                "kept": kept,
                "problems": problems_json(problems),
            }
        )
    elif not problems:
        verb = "would let" if dry_run else "lets"
        output.print_line(f"checkout {manifest.number}: {verb} gc free {output.size(freed)}")
    _tell_kept(kept)
    if problems:
        count = output.count_text(len(problems), "problem")
        raise SourceError(f"not all of {place} could be removed ({count}): the checkout stays")


def _forget_deduped(place: str, store_path: Path | None, *, force: bool, as_json: bool) -> None:
    from dedupfs.checkout.dedupe.forget import forget
    from dedupfs.checkout.dedupe.state import KIND
    from dedupfs.namespace.checkouts import open_checkout

    with checkout_at(Path(place), store_path, to_change=False) as (opened, manifest):
        if manifest.kind != KIND:
            raise UsageError(f"{place} is a checkout: 'dedupfs checkout rm' without --gone")
        with open_checkout(opened, manifest.number) as registration:
            names = forget(opened, registration, force=force)
    if as_json:
        output.print_json({"number": manifest.number, "snapshots": list(names)})
    else:
        kept = ", ".join(names)
        output.print_line(f"checkout {manifest.number} is forgotten; what it held is in {kept}")


def _what(store: "Store", where: str) -> "What":
    from dedupfs.checkout.make import What

    place = find_directory(store, where)
    return What(place.info, place.path, place.entry)


def _print_made(directory: Path, report: "CheckoutReport", as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                "number": report.number,
                "link": report.link,
                "files": report.files,
                "directories": report.directories,
                "removed": report.removed,
                "linked_files": report.linked_files,
                "linked_bytes": report.linked_bytes,
                "shared_bytes": report.shared_bytes,
                "copied_bytes": report.copied_bytes,
                "assembled_bytes": report.assembled_bytes,
                "fallbacks": report.fallbacks,
                "seconds": round(report.seconds, 3),
                "kept": [output.text_of(path) for path in report.kept],
                "problems": problems_json(report.problems),
            }
        )
    else:
        output.print_line(
            f"{directory}: {output.count_text(report.files, 'file')}, "
            f"{output.size(report.linked_bytes)} linked, {output.size(report.shared_bytes)} "
            f"shared, {output.size(report.copied_bytes)} copied in {report.seconds:.1f} s "
            f"({report.link}, checkout {report.number})"
        )
    _tell_kept([output.text_of(path) for path in report.kept])
    if report.fallbacks:
        output.note(
            f"{output.count_text(report.fallbacks, 'file')} copied: the kernel, or other names of "
            "the same pack, left no hard link with these attributes"
        )
    if report.damaged:
        raise CorruptError(
            f"{output.count_text(report.damaged, 'file')} could not be made: the store is damaged; "
            "dedupfs scrub tells more"
        )
    if report.problems:
        count = output.count_text(len(report.problems), "problem")
        raise SourceError(f"not everything of {directory} could be made ({count})")


def _tell_kept(kept: list[str]) -> None:
    for path in kept[:KEPT_SHOWN_MAX]:
        output.note(f"{path} was changed or added, and stays")
    if len(kept) > KEPT_SHOWN_MAX:
        output.note(f"and {len(kept) - KEPT_SHOWN_MAX:,} more; --json lists all of them")


checkout.add_command(inspecting.verify)
checkout.add_command(inspecting.list_)

COMMANDS: list[click.Command] = [checkout]
