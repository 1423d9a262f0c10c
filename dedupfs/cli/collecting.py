"""The command gc. Specified in docs/cli.md."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import DRY_RUN, JSON, STORE, open_store
from dedupfs.errors import StoreFullError

if TYPE_CHECKING:
    from dedupfs.maintenance.gc import GcForecast, GcOptions, GcReport


@click.command()
@STORE
@DRY_RUN
@click.option(
    "--target-free",
    metavar="SIZE",
    help="Stop as soon as the file system has so much free; exit code 5 when it cannot.",
)
@click.option(
    "--compact/--no-compact",
    default=True,
    help="Rewrite packs of which little is live (default), or only punch holes.",
)
@click.option(
    "--compact-below",
    type=click.IntRange(1, 90),
    default=50,
    show_default=True,
    metavar="PERCENT",
    help="Rewrite a pack when at most so much of its disk space is live.",
)
@JSON
def gc(
    store: Path,
    dry_run: bool,
    target_free: str | None,
    compact: bool,
    compact_below: int,
    as_json: bool,
) -> None:
    """Free the space of everything in STORE that nothing refers to any more.

    Mounted views, readers and running imports are not disturbed. Interrupted, the next run goes on.

    \b
    Examples:
      dedupfs gc --dry-run store/
      dedupfs gc store/
      dedupfs gc --target-free 50GiB store/
    """
    from dedupfs.maintenance.gc import GcOptions, collect, forecast
    from dedupfs.namespace import live

    options = GcOptions(
        live_share=compact_below / 100 if compact else 0,
        target_free_bytes=None if target_free is None else output.parse_size(target_free),
    )
    with open_store(store) as opened:
        if dry_run:
            _tell_forecast(store, forecast(opened, options), options, as_json=as_json)
            return
        # What was deleted in a mount is let go of by its fold.
        live.fold_all(opened.path, output.note)
        with output.meter("freeing") as bar:
            progress = bar.update if output.is_watched() else None
            report = collect(opened, options=options, progress=progress)
    _tell(report, as_json=as_json)
    if not report.target_reached:
        assert options.target_free_bytes is not None
        raise StoreFullError(
            f"{store}: nothing more can be freed; {output.size(report.free_bytes)} are free, "
            f"{output.size(options.target_free_bytes - report.free_bytes)} less than asked for: "
            "remove snapshots or views"
        )


def _tell(report: "GcReport", *, as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                "dry_run": False,
                "records": report.records,
                "freed_bytes": report.stored_bytes,
                "disk_bytes_freed": report.disk_bytes_freed,
                "packs_removed": report.packs_removed,
                "packs_compacted": report.compacted_packs,
                "compacted_bytes": report.compacted_bytes,
                "rewritten_bytes": report.rewritten_bytes,
                "leftovers_removed": report.leftovers,
                "kept_records": report.kept_records,
                "free_bytes": report.free_bytes,
                "target_reached": report.target_reached,
            }
        )
        return
    records = output.count_text(report.records, "record")
    output.print_line(f"freed {output.size(report.stored_bytes)} in {records}")
    if report.compacted_packs:
        packs = output.count_text(report.compacted_packs, "pack")
        output.print_line(
            f"got {output.size(report.compacted_bytes)} back by rewriting "
            f"{output.size(report.rewritten_bytes)} of {packs}"
        )
    if report.leftovers:
        files = output.count_text(report.leftovers, "file")
        output.print_line(f"removed {files} that dead processes left")
    if report.kept_records:
        kept = output.count_text(report.kept_records, "record")
        output.print_line(
            f"{kept} cannot be read and so not be freed: run 'dedupfs check --repair'"
        )


def _tell_forecast(
    store: Path, found: "GcForecast", options: "GcOptions", *, as_json: bool
) -> None:
    if as_json:
        output.print_json(
            {
                "dry_run": True,
                "records": found.records,
                "freed_bytes": found.stored_bytes,
                "disk_bytes_freed": found.disk_bytes,
                "unpunched_bytes": found.unpunched_bytes,
                "has_holes": found.has_holes,
                "packs_compacted": len(found.sparse),
                "compacted_bytes": found.compacted_bytes,
                "rewritten_bytes": found.rewritten_bytes,
                "freed_bytes_max": found.freed_bytes_max,
                "free_bytes": found.free_bytes,
            }
        )
    else:
        records = output.count_text(found.records, "record")
        output.print_line(f"would free {output.size(found.stored_bytes)} in {records}")
        output.print_line(f"would give {output.size(found.disk_bytes)} back to the disk")
        if not found.has_holes:
            output.print_line(
                f"of that, {output.size(found.emptied_bytes)} would come back: the file system has "
                "no holes"
            )
        elif found.unpunched_bytes:
            output.print_line(
                f"would give back {output.size(found.unpunched_bytes)} that were freed before"
            )
        if found.sparse:
            packs = output.count_text(len(found.sparse), "pack")
            output.print_line(
                f"would give back {output.size(found.compacted_bytes)} by rewriting "
                f"{output.size(found.rewritten_bytes)} of {packs}"
            )
    short = (options.target_free_bytes or 0) - found.free_bytes - found.freed_bytes_max
    if short > 0:
        raise StoreFullError(
            f"{store}: at most {output.size(found.freed_bytes_max)} can be freed, "
            f"{output.size(short)} less than --target-free takes"
        )


COMMANDS: list[click.Command] = [gc]
