"""The command that removes what no rule keeps: prune.

Specified in docs/cli.md.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import DRY_RUN, JSON, STORE, open_store, snapshot_argument
from dedupfs.cli.retention import keep_options
from dedupfs.cli.snapshots import collect_garbage, print_freed, still_held

if TYPE_CHECKING:
    from dedupfs.maintenance.prune import Plan
    from dedupfs.maintenance.retention import Decision, Policy

NO_RULE = "no rule keeps it"


@click.command()
@STORE
@snapshot_argument("patterns", "[SNAPSHOT|PATTERN...]", nargs=-1)
@keep_options
@click.option(
    "--max-size", metavar="SIZE", help="Let only as many go as make the store that small."
)
@click.option(
    "--keep-free", metavar="SIZE", help="Let only as many go as leave that much of the disk free."
)
@DRY_RUN
@click.option("--no-gc", is_flag=True, help="Leave freeing the space to a later gc.")
@JSON
def prune(
    store: Path,
    patterns: tuple[str, ...],
    policy: "Policy",
    max_size: str | None,
    keep_free: str | None,
    dry_run: bool,
    no_gc: bool,
    as_json: bool,
) -> None:
    """Remove the snapshots of STORE that no rule keeps, and free what only they held.

    A snapshot stays when any --keep option keeps it, or when it is pinned. With names or shell
    patterns, only snapshots that match are looked at; all others stay.

    \b
    Examples:
      dedupfs prune --dry-run store/ --keep-last 3 --keep-daily 7 --keep-weekly 4
      dedupfs prune store/ 'run7-*' --keep-last 2 --keep-every 1000 --keep-best loss:min=3
      dedupfs prune store/ --group-by tag:run --keep-best accuracy:max --keep-tag release
      dedupfs prune store/ --keep-last 5 --keep-every 1000 --max-size 500GiB
    """
    from dedupfs.maintenance.prune import Budget, plan
    from dedupfs.maintenance.prune import prune as carry_out
    from dedupfs.maintenance.retention import Moment
    from dedupfs.maintenance.usage import exclusive_bytes
    from dedupfs.namespace.snapshots import SnapshotCatalog

    moment = Moment(time.time_ns())
    sizes = [None if text is None else output.parse_size(text) for text in (max_size, keep_free)]
    with open_store(store) as opened:
        catalog = SnapshotCatalog(opened)
        act = plan if dry_run else carry_out
        budget = Budget(opened, *sizes) if any(size is not None for size in sizes) else None
        done = act(catalog, policy, moment, patterns, budget)
        freed: int | None = None
        disk_bytes: int | None = None
        held: list[str] = []
        if dry_run:
            would = exclusive_bytes(opened, done.names)
            freed, disk_bytes = would.stored_bytes, would.disk_bytes
        elif not no_gc and done.going:
            freed = collect_garbage(opened)
            held = still_held(opened, done.going)
        elif not done.going:
            freed = 0
    if as_json:
        told = _json(done, dry_run=dry_run, held=held)
        output.print_json({**told, "freed_bytes": freed, "frees_bytes": disk_bytes})
        return
    _print(done, dry_run=dry_run)
    print_freed(store, freed, disk_bytes, held, dry_run=dry_run)
    if done.missing_bytes:
        output.note(
            f"{output.size(done.missing_bytes)} more would have to go, and the rules keep the rest"
        )


def _json(done: "Plan", *, dry_run: bool, held: Sequence[str]) -> dict[str, output.Json]:
    return {
        "dry_run": dry_run,
        "snapshots": [
            {
                "name": decision.candidate.name,
                "group": decision.group,
                "created_ns": decision.candidate.time_ns,
                "stays": decision.stays,
                "reasons": list(decision.reasons or (NO_RULE,)),
            }
            for decision in done.decisions
        ],
        "kept": [info.name for info in done.staying],
        "removed": done.names,
        "missing_bytes": done.missing_bytes,
        "still_held": list(held),
    }


def _print(done: "Plan", *, dry_run: bool) -> None:
    print_decisions(done.decisions)
    count = output.count_text(len(done.going), "snapshot")
    output.print_line(
        f"{'would remove' if dry_run else 'removed'} {count}, "
        f"{'would keep' if dry_run else 'kept'} {len(done.staying):,}"
    )


def print_decisions(decisions: Sequence["Decision"]) -> None:
    """Print a line for each: what becomes of it, and why."""
    head: list[str] = ["", "NAME", "CREATED", "WHY"]
    rows = [
        [
            "keep" if decision.stays else "remove",
            decision.candidate.name,
            output.time_text(decision.candidate.time_ns),
            ", ".join(decision.reasons or (NO_RULE,)),
        ]
        for decision in decisions
    ]
    if any(decision.group for decision in decisions):
        head.insert(1, "GROUP")
        for row, decision in zip(rows, decisions, strict=True):
            row.insert(1, decision.group)
    output.print_table(head, rows)


COMMANDS: list[click.Command] = [prune]
