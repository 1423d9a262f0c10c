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
from dedupfs.cli.snapshots import collect_garbage, still_held

if TYPE_CHECKING:
    from dedupfs.maintenance.prune import Plan
    from dedupfs.maintenance.retention import Decision, Policy
    from dedupfs.store import Store

NO_RULE = "no rule keeps it"


@click.command()
@STORE
@snapshot_argument("patterns", "[SNAPSHOT|PATTERN...]", nargs=-1)
@keep_options
@DRY_RUN
@click.option("--no-gc", is_flag=True, help="Leave freeing the space to a later gc.")
@JSON
def prune(
    store: Path,
    patterns: tuple[str, ...],
    policy: "Policy",
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
    """
    from dedupfs.maintenance.prune import plan
    from dedupfs.maintenance.prune import prune as carry_out
    from dedupfs.maintenance.retention import Moment
    from dedupfs.namespace.snapshots import SnapshotCatalog

    moment = Moment(time.time_ns())
    with open_store(store) as opened:
        catalog = SnapshotCatalog(opened)
        act = plan if dry_run else carry_out
        done = act(catalog, policy, moment, patterns)
        freed: int | None = None
        held: list[str] = []
        if dry_run:
            freed = _would_free(opened, done.names)
        elif not no_gc and done.going:
            freed = collect_garbage(opened)
            held = still_held(opened, done.going)
        elif not done.going:
            freed = 0
    if as_json:
        output.print_json(_json(done, dry_run=dry_run, freed_bytes=freed, held=held))
    else:
        _print(store, done, dry_run=dry_run, freed_bytes=freed, held=held)


def _would_free(store: "Store", names: Sequence[str]) -> int:
    from dedupfs.maintenance.usage import exclusive_bytes

    return exclusive_bytes(store, names).stored_bytes


def _json(
    done: "Plan", *, dry_run: bool, freed_bytes: int | None, held: Sequence[str]
) -> dict[str, output.Json]:
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
        "freed_bytes": freed_bytes,
        "still_held": list(held),
    }


def _print(
    store: Path,
    done: "Plan",
    *,
    dry_run: bool,
    freed_bytes: int | None,
    held: Sequence[str],
) -> None:
    print_decisions(done.decisions)
    count = output.count_text(len(done.going), "snapshot")
    output.print_line(
        f"{'would remove' if dry_run else 'removed'} {count}, "
        f"{'would keep' if dry_run else 'kept'} {len(done.staying):,}"
    )
    if freed_bytes is None:
        output.print_line(f"the space is freed by: dedupfs gc {store}")
    else:
        output.print_line(f"{'would free' if dry_run else 'freed'} {output.size(freed_bytes)}")
    for name in held:
        held_by = "a view, a mount or a clone; its space comes with them"
        output.print_line(f"{name} is still held by {held_by}")


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
