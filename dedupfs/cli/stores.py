"""Commands about a whole store: init, check, scrub, reindex.

Specified in docs/cli.md.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import JSON, STORE, open_store
from dedupfs.cli.problems import ToldError
from dedupfs.errors import UsageError

if TYPE_CHECKING:
    from dedupfs.maintenance.problems import Problem
    from dedupfs.maintenance.reindex import ReindexReport


@click.command()
@STORE
@click.option(
    "--chunk-size",
    default="64KiB",
    show_default=True,
    metavar="SIZE",
    help="Average chunk: a power of two. Smaller finds more duplicates, larger costs less.",
)
@click.option(
    "--compression",
    type=click.Choice(["auto", "none", "zstd"]),
    default="auto",
    show_default=True,
    help="auto: zstd where a sample says that it pays.",
)
def init(store: Path, chunk_size: str, compression: str) -> None:
    """Make an empty store at STORE, a path that is free or an empty directory.

    Neither setting can be changed later.

    \b
    Examples:
      dedupfs init store/
      dedupfs init store/ --chunk-size 16KiB --compression none
    """
    from dedupfs.store import Store

    average = output.parse_size(chunk_size)
    Store.create(store, chunk_bytes_average=average, compression=compression).close()
    output.print_line(f"made an empty store at {store}")


@click.command()
@STORE
@click.option("--repair", is_flag=True, help="Make whole what can be made whole.")
@click.option("--dry-run", is_flag=True, help="With --repair: say what would be done.")
@JSON
def check(store: Path, repair: bool, dry_run: bool, as_json: bool) -> None:
    """Verify that the index, the packs, the trees and all reference counts of STORE agree.

    Reads no file data (scrub does). The exit code is 3 when something is wrong; each problem is a
    line that says what to do.

    --repair needs STORE for itself. It mends dedupfs.json, the index with all its counts, and
    damaged records of which the store has the bytes elsewhere, and lists what is left. No file is
    dropped or replaced. A file that is imported again after it was damaged mends its old snapshots.

    \b
    Examples:
      dedupfs check store/
      dedupfs check --repair --dry-run store/
    """
    from dedupfs.maintenance.check import check as check_store

    if repair:
        _repair(store, dry_run=dry_run, as_json=as_json)
        return
    if dry_run:
        raise UsageError("--dry-run is for --repair; check alone changes nothing")

    with open_store(store) as opened, output.meter("checking", is_bytes=False) as bar:
        report = check_store(opened, progress=bar.update)
    if as_json:
        problems = [_problem_json(found) for found in report.problems]
        output.print_json(
            {
                "ok": report.ok,
                "records": report.records,
                "references": report.references,
                "packs": report.packs,
                "snapshots": report.snapshots,
                "views": report.views,
                "problems": problems,
                "problems_left_off": report.problems_left_off,
            }
        )
    else:
        for found in report.problems:
            output.print_line(str(found))
    if not report.ok:
        count = len(report.problems) + report.problems_left_off
        raise ToldError(f"{store}: {output.count_text(count, 'problem')}")
    if not as_json:
        output.print_line(
            f"no problems: {output.count_text(report.records, 'record')}, "
            f"{output.count_text(report.snapshots, 'snapshot')}, "
            f"{output.count_text(report.packs, 'pack')}"
        )


def _problem_json(found: "Problem") -> output.Json:
    return {
        "code": found.code,
        "where": found.where,
        "what": found.what,
        "advice": found.advice,
        "uses": list(found.uses),
    }


def _repair(store: Path, *, dry_run: bool, as_json: bool) -> None:
    from dedupfs.maintenance.repair import repair

    with output.meter("repairing", is_bytes=False) as bar:
        report = repair(
            store,
            dry_run=dry_run,
            progress=lambda stage, done, total: bar.update(done, total, stage),
        )
    losses = _losses(report.reindex) if report.reindex is not None else []
    left = [str(problem) for problem in report.left]
    left += [loss for loss in losses if loss not in left]
    if as_json:
        output.print_json(
            {
                "ok": report.ok,
                "dry_run": dry_run,
                "found": [_problem_json(problem) for problem in report.found],
                "done": report.done,
                "left": left,
            }
        )
    else:
        for problem in report.found if dry_run else []:
            output.print_line(str(problem))
        for line in report.done:
            output.print_line(("would do: " if dry_run else "repaired: ") + line)
        for line in left:
            output.print_line(line)
    if not report.ok:
        raise ToldError(f"{store}: {output.count_text(len(left), 'problem')} left")
    if dry_run and report.found:
        raise ToldError(f"{store}: {output.count_text(len(report.found), 'problem')}")
    if not as_json and not report.found and not report.done:
        output.print_line("no problems")


@click.command()
@STORE
@JSON
def scrub(store: Path, as_json: bool) -> None:
    """Read every live byte of STORE from the disk and verify it.

    Damage is told with the files that it hits; the exit code is 3 then. May run beside mounts.

    \b
    Example:
      dedupfs scrub store/
    """
    from dedupfs.maintenance.scrub import scrub as scrub_store

    with open_store(store) as opened, output.meter("scrubbing") as bar:
        report = scrub_store(opened, progress=bar.update)
    if as_json:
        damage: list[output.Json] = [
            {
                "record": found.record_id.hex(),
                "kind": found.kind.name.lower(),
                "pack": str(found.path),
                "pack_offset": found.pack_offset,
                "stored_bytes": found.stored_bytes,
                "what": found.what,
                "uses": [
                    {"holder": use.kind, "name": use.name, "path": output.text_of(use.path)}
                    for use in found.uses
                ],
            }
            for found in report.damage
        ]
        output.print_json(
            {
                "ok": report.ok,
                "records": report.records,
                "stored_bytes": report.stored_bytes,
                "damaged_records": report.damaged_records,
                "damaged_files": report.damaged_files,
                "snapshots": list(report.holders("snapshot")),
                "views": list(report.holders("view")),
                "damage": damage,
            }
        )
    else:
        for found in report.damage:
            output.print_line(str(found))
    if not report.ok:
        hit = [
            output.count_text(len(report.holders(kind)), kind)
            for kind in ("snapshot", "view")
            if report.holders(kind)
        ]
        raise ToldError(
            f"{store}: {output.count_text(report.damaged_records, 'bad record')}, "
            f"{output.count_text(report.damaged_files, 'file')} hit"
            + (f" in {' and '.join(hit)}" if hit else "")
        )
    if not as_json:
        output.print_line(
            f"no damage: {output.size(report.stored_bytes)} in "
            f"{output.count_text(report.records, 'record')}"
        )


@click.command()
@STORE
@JSON
def reindex(store: Path, as_json: bool) -> None:
    """Rebuild the index of STORE from its packs and the views' journals.

    Brings back every snapshot, and every view as of its last fsync. Nothing may use the store
    meanwhile. The exit code is 3 when something could not be brought back.

    \b
    Example:
      dedupfs reindex store/
    """
    from dedupfs.maintenance.reindex import reindex as reindex_store

    with output.meter("reindexing") as bar:
        report = reindex_store(
            store, progress=lambda stage, done, total: bar.update(done, total, stage)
        )
    losses = _losses(report)
    if as_json:
        output.print_json(
            {
                "ok": report.ok,
                "packs": report.packs,
                "records": report.records,
                "snapshots": report.snapshots,
                "views": report.views,
                "renamed": [list(pair) for pair in report.renamed],
                "losses": losses,
            }
        )
    else:
        for old, new in report.renamed:
            output.print_line(f"a second snapshot called {old} is {new} now")
        for loss in losses:
            output.print_line(loss)
        output.print_line(
            f"rebuilt the index of {store}: {output.count_text(report.records, 'record')}, "
            f"{output.count_text(len(report.snapshots), 'snapshot')}, "
            f"{output.count_text(len(report.views), 'view')}"
        )
    if not report.ok:
        raise ToldError(f"{store}: not everything could be brought back")


def _losses(report: "ReindexReport") -> list[str]:
    """Return a line for each thing that is gone or shorter."""
    return [
        *(f"damaged: {place}" for place in report.damaged),
        *(f"pack {pack} is not described by any readable record" for pack in report.lost_packs),
        *(f"view {name} is lost: {why}" for name, why in report.lost_views),
        *report.lost_checkouts,
        *(f"view {name} is as of its last fold: {why}" for name, why in report.shortened_views),
        *(str(problem) for problem in report.problems),
    ]


COMMANDS: list[click.Command] = [init, check, scrub, reindex]
