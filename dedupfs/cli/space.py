"""Commands that tell what takes how much space: stats and du.

Specified in docs/cli.md.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import JSON, STORE, completed_with, open_store, snapshot_argument
from dedupfs.cli.problems import ToldError

if TYPE_CHECKING:
    from dedupfs.maintenance.forecast import Forecast
    from dedupfs.maintenance.release import Exclusive
    from dedupfs.maintenance.usage import StoreUsage
    from dedupfs.store import Store

_BAR_CELLS = 20
_SORTS = ("name", "logical", "shared", "exclusive", "frees")


# --- stats -----------------------------------------------------------------------------------


@click.command()
@STORE
@JSON
def stats(store: Path, as_json: bool) -> None:
    """Show what STORE holds and what that takes.

    \b
    logical    all files of all snapshots and views, as they read
    unique     their distinct chunks, before compression
    stored     those chunks as they lie in the packs
    trees      directories, recipes and the headers of all records
    unfolded   journals and staging files of views
    garbage    what gc would give back now
    holes      what was freed inside packs and given back to the disk
    copies     what plain copies of all snapshots and views would take
    ratio      logical bytes for each byte on disk
    limit      what the store may take, and what of that is used

    \b
    Example:
      dedupfs stats store/ --json
    """
    from dedupfs.cli.limits import budget_text, store_budget
    from dedupfs.maintenance.usage import store_usage

    with open_store(store) as opened:
        usage = store_usage(opened)
        budget = store_budget(opened)
    if as_json:
        limits = {"limit_bytes": budget.limit_bytes, "used_bytes": budget.use_bytes}
        output.print_json({**usage_json(usage), **limits})
    else:
        output.print_fields([*_usage_fields(usage), ("limit", budget_text(budget))])
    _tell_problems(store, usage.problems)


def _usage_fields(usage: "StoreUsage") -> list[tuple[str, str]]:
    metadata = usage.metadata_stored_bytes + usage.header_bytes
    inodes = f"{usage.files:,} files, {usage.directories:,} directories"
    return [
        ("snapshots", f"{usage.snapshots:,}"),
        ("views", f"{usage.views:,}"),
        ("entries", f"{usage.entries + usage.view_entries:,}"),
        ("logical", output.size(usage.copies_bytes)),
        (
            "unique",
            f"{output.size(usage.chunk_logical_bytes)} in {usage.chunks:,} chunks, "
            f"{usage.dedup_ratio:.2f} times less",
        ),
        (
            "stored",
            f"{output.size(usage.chunk_stored_bytes)}, "
            f"{output.size(usage.saved_by_codec_bytes)} saved by compression",
        ),
        ("trees", f"{output.size(metadata)} in {usage.metadata_records:,} records"),
        ("unfolded", output.size(usage.view_file_bytes)),
        ("index", output.size(usage.index_bytes)),
        ("garbage", output.size(usage.garbage_disk_bytes)),
        ("holes", output.size(usage.hole_bytes)),
        ("on disk", f"{output.size(usage.disk_bytes)} in {inodes}"),
        ("copies", f"{output.size(usage.copies_bytes)} in {usage.plain_inodes:,} inodes"),
        ("ratio", f"{usage.ratio:.2f}"),
    ]


def usage_json(usage: "StoreUsage") -> dict[str, output.Json]:
    """Return the sums of a store for --json."""
    return {
        "snapshots": usage.snapshots,
        "views": usage.views,
        "entries": usage.entries,
        "logical_bytes": usage.logical_bytes,
        "view_entries": usage.view_entries,
        "view_logical_bytes": usage.view_logical_bytes,
        "unique_bytes": usage.chunk_logical_bytes,
        "chunks": usage.chunks,
        "stored_bytes": usage.chunk_stored_bytes,
        "saved_by_codec_bytes": usage.saved_by_codec_bytes,
        "metadata_bytes": usage.metadata_stored_bytes,
        "metadata_records": usage.metadata_records,
        "header_bytes": usage.header_bytes,
        "view_file_bytes": usage.view_file_bytes,
        "index_bytes": usage.index_bytes,
        "garbage_bytes": usage.garbage_bytes,
        "garbage_disk_bytes": usage.garbage_disk_bytes,
        "garbage_records": usage.garbage_records,
        "free_bytes": usage.hole_bytes,
        "disk_bytes": usage.disk_bytes,
        "packs": usage.packs,
        "files": usage.files,
        "directories": usage.directories,
        "inodes": usage.inodes,
        "copies_bytes": usage.copies_bytes,
        "copies_inodes": usage.plain_inodes,
        "dedup_ratio": round(usage.dedup_ratio, 4),
        "ratio": round(usage.ratio, 4),
        "problems": list(usage.problems),
    }


# --- du --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Taken:
    """What one snapshot, one view or several of them take."""

    kind: str
    name: str
    logical_bytes: int
    exclusive: "Exclusive"
    unfolded_bytes: int = 0
    mountpoint: str = ""

    @property
    def title(self) -> str:
        """How a table names it."""
        return f"{self.name} (view)" if self.kind == "view" else self.name

    def rank(self, sort: str) -> tuple[int, str, str]:
        """Return what comes first: the largest, or the first by name, views behind."""
        sizes = {
            "name": 0,
            "logical": self.logical_bytes,
            "shared": self.exclusive.shared_bytes,
            "exclusive": self.exclusive.logical_bytes,
            "frees": self.exclusive.disk_bytes,
        }
        return -sizes[sort], self.kind, self.name

    @property
    def sizes(self) -> tuple[str, ...]:
        """The columns of a table."""
        return (
            output.size(self.logical_bytes),
            output.size(self.exclusive.shared_bytes),
            output.size(self.exclusive.logical_bytes),
            output.size(self.exclusive.disk_bytes),
        )

    def json(self) -> dict[str, output.Json]:
        """Return what --json tells of it."""
        found: dict[str, output.Json] = {
            "name": self.name,
            "logical_bytes": self.logical_bytes,
            "shared_bytes": self.exclusive.shared_bytes,
            "exclusive_logical_bytes": self.exclusive.logical_bytes,
            "exclusive_bytes": self.exclusive.stored_bytes,
            "exclusive_records": self.exclusive.records,
            "frees_bytes": self.exclusive.disk_bytes,
        }
        if self.kind == "view":
            found["unfolded_bytes"] = self.unfolded_bytes
            found["mountpoint"] = self.mountpoint
        return found


@click.command()
@STORE
@snapshot_argument("names", "[NAME...]", nargs=-1)
@click.option(
    "--view",
    "views",
    metavar="V",
    multiple=True,
    shell_complete=completed_with("view"),
    help="A view as well; repeatable.",
)
@click.option(
    "--sort",
    type=click.Choice(_SORTS),
    default="name",
    show_default=True,
    help="By name, or the largest first.",
)
@JSON
def du(
    store: Path, names: tuple[str, ...], views: tuple[str, ...], sort: str, as_json: bool
) -> None:
    """Show what each snapshot and view of STORE takes, or what those named take together.

    \b
    LOGICAL    its files, as they read
    SHARED     what of that others hold, too
    EXCLUSIVE  chunks that only it holds, each once, before compression
    FREES      what the disk gets back when it is removed, on top of garbage

    With names a last line tells what removing all of them frees, which can be more than the sum:
    chunks that only they share. A mounted view is told of as of its last fold.

    \b
    Examples:
      dedupfs du store/ --sort frees
      dedupfs du store/ step-1000 step-2000 --view job17
    """
    from dedupfs.maintenance.forecast import Forecast

    with open_store(store) as opened, opened.reading() as txn:
        forecast = Forecast(opened, txn)
        chosen = bool(names or views)
        wanted = tuple(dict.fromkeys(names)) if chosen else forecast.snapshots()
        wanted_views = tuple(dict.fromkeys(views)) if chosen else forecast.views()
        taken = [_snapshot_taken(forecast, name) for name in wanted]
        taken += [_view_taken(opened, forecast, name) for name in wanted_views]
        together = _together(forecast, taken) if chosen else None
        garbage = forecast.garbage
    taken.sort(key=lambda found: found.rank(sort))
    if as_json:
        by_kind = {kind: [t.json() for t in taken if t.kind == kind] for kind in _KINDS}
        output.print_json(
            {
                "snapshots": by_kind["snapshot"],
                "views": by_kind["view"],
                "together": None if together is None else together.json(),
                "exclusive_together_bytes": (
                    None if together is None else together.exclusive.stored_bytes
                ),
                "garbage_bytes": garbage.disk_bytes,
            }
        )
    else:
        _print_taken(taken, together)
        if garbage.disk_bytes and not chosen:
            output.note(f"{output.size(garbage.disk_bytes)} are garbage: dedupfs gc {store}")
    problems = dict.fromkeys([*forecast.damaged, *garbage.problems])
    for found in [*taken, *([together] if together is not None else [])]:
        problems.update(dict.fromkeys(found.exclusive.problems))
    _tell_problems(store, tuple(problems))


_KINDS = ("snapshot", "view")


def _snapshot_taken(forecast: "Forecast", name: str) -> _Taken:
    info, _ = forecast.snapshot(name)
    return _Taken("snapshot", name, forecast.logical_bytes(info), forecast.exclusive([name]))


def _view_taken(store: "Store", forecast: "Forecast", name: str) -> _Taken:
    from dedupfs.namespace.views import view_owner

    logical_bytes = forecast.view_logical_bytes(forecast.view(name))
    owner = view_owner(store, name)
    return _Taken(
        "view",
        name,
        logical_bytes,
        forecast.exclusive(views=[name]),
        forecast.view_file_bytes(name),
        owner.mountpoint if owner is not None else "",
    )


def _together(forecast: "Forecast", taken: list[_Taken]) -> _Taken:
    names = {kind: [found.name for found in taken if found.kind == kind] for kind in _KINDS}
    exclusive = forecast.exclusive(names["snapshot"], names["view"])
    return _Taken("", "together", sum(found.logical_bytes for found in taken), exclusive)


def _print_taken(taken: list[_Taken], together: _Taken | None) -> None:
    head: tuple[str, ...] = ("NAME", "LOGICAL", "SHARED", "EXCLUSIVE", "FREES")
    rows = [(found.title, *found.sizes) for found in taken]
    if sys.stdout.isatty():
        largest = max((found.logical_bytes for found in taken), default=0)
        head = (*head, "# EXCLUSIVE . SHARED")
        rows = [(*row, _bar(found, largest)) for row, found in zip(rows, taken, strict=True)]
    if together is not None and len(taken) > 1:
        row = (together.title, *together.sizes)
        rows.append((*row, "") if len(head) > len(row) else row)
    output.print_table(head, rows, right=(1, 2, 3, 4))


def _bar(taken: _Taken, largest_bytes: int) -> str:
    """Draw LOGICAL to scale: what only it holds, then what others hold, too."""
    if not largest_bytes:
        return ""
    exclusive = min(taken.exclusive.logical_bytes, taken.logical_bytes)
    shared = min(taken.exclusive.shared_bytes, taken.logical_bytes - exclusive)
    cells = -(-exclusive * _BAR_CELLS // largest_bytes)
    return "#" * cells + "." * (-(-(exclusive + shared) * _BAR_CELLS // largest_bytes) - cells)


def _tell_problems(store: Path, problems: tuple[str, ...]) -> None:
    """Say what is not in the figures.

    Raises:
        ToldError: there is such a thing.
    """
    for problem in problems:
        output.note(problem)
    if problems:
        count = output.count_text(len(problems), "thing")
        raise ToldError(f"{store}: {count} could not be followed, so more may be held or freed")


COMMANDS: list[click.Command] = [stats, du]
