"""The command that removes the large files of old checkpoints in a directory: prune-files.

Specified in docs/cli.md.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import DRY_RUN, JSON, completed_with
from dedupfs.cli.prune import NO_RULE, print_decisions
from dedupfs.cli.retention import keep_options
from dedupfs.errors import SourceError

if TYPE_CHECKING:
    from dedupfs.maintenance.checkpoints import Checkpoint, Plan
    from dedupfs.maintenance.retention import Policy


@click.command("prune-files")
@click.argument(
    "directory", type=click.Path(path_type=Path), shell_complete=completed_with("directory")
)
@click.argument("patterns", metavar="[NAME|PATTERN...]", nargs=-1)
@keep_options
@click.option(
    "--protect", metavar="PATTERN", multiple=True, help="Never remove such files; repeatable."
)
@click.option("--no-default-protect", is_flag=True, help="Protect only what --protect names.")
@click.option(
    "--metrics",
    "metrics_name",
    metavar="FILE",
    default="",
    shell_complete=completed_with("file"),
    help="JSON file with the numbers.",
)
@DRY_RUN
@JSON
def prune_files(
    directory: Path,
    patterns: tuple[str, ...],
    policy: "Policy",
    protect: tuple[str, ...],
    no_default_protect: bool,
    metrics_name: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove the large files of those checkpoints in DIRECTORY that no rule keeps.

    Each subdirectory with a number in its name (or that matches a PATTERN) is a checkpoint.
    Sources, manifests, logs and summaries stay; see docs/cli.md for the list.

    \b
    Examples:
      dedupfs prune-files --dry-run /workspace/ckpts --keep-last 3 --keep-every 1000
      dedupfs prune-files ckpts 'run7-*' --metrics trainer_state.json \\
          --keep-best log_history.eval_loss:min --keep-last 1
    """
    from dedupfs.maintenance import checkpoints
    from dedupfs.maintenance.retention import Moment

    problems: list[tuple[str, str]] = []
    evidence = () if no_default_protect else checkpoints.EVIDENCE
    options = checkpoints.Options(patterns, (*evidence, *protect), metrics_name)
    with checkpoints.opened(directory) as top:
        planned = checkpoints.plan(
            top, policy, Moment(time.time_ns()), options, lambda *told: problems.append(told)
        )
        done = list(planned.going)
        if not dry_run:
            done = []
            for checkpoint in planned.going:
                try:
                    checkpoints.remove(top, checkpoint, options)
                    done.append(checkpoint)
                except SourceError as exc:
                    problems.append((checkpoint.name, str(exc)))
    _print(planned, done, problems, dry_run=dry_run, as_json=as_json)
    if problems:
        count = output.count_text(len(problems), "checkpoint")
        raise SourceError(f"{count} in {directory} could not be looked at or removed")


def _print(
    planned: "Plan",
    done: "list[Checkpoint]",
    problems: list[tuple[str, str]],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    from dedupfs.maintenance.checkpoints import freed_bytes

    for name, message in problems:
        output.note(f"{name}: {message}")
    if as_json:
        output.print_json(
            {
                "dry_run": dry_run,
                "checkpoints": [
                    {
                        "name": decision.candidate.name,
                        "group": decision.group,
                        "mtime_ns": decision.candidate.time_ns,
                        "stays": decision.stays,
                        "reasons": list(decision.reasons or (NO_RULE,)),
                    }
                    for decision in planned.decisions
                ],
                "removed_files": [
                    f"{one.name}/{file.path}" for one in done for file in one.prunable
                ],
                "disk_bytes": freed_bytes(done),
                "problems": [{"name": name, "message": message} for name, message in problems],
            }
        )
        return
    print_decisions(planned.decisions)
    for checkpoint in done if dry_run else ():
        for file in checkpoint.prunable:
            output.print_line(
                f"would remove {checkpoint.name}/{file.path} ({output.size(file.size)})"
            )
    files = output.count_text(sum(len(one.prunable) for one in done), "file")
    output.print_line(
        f"{'would remove' if dry_run else 'removed'} {files} of "
        f"{output.count_text(len(done), 'checkpoint')}: {output.size(freed_bytes(done))} on disk"
    )


COMMANDS: list[click.Command] = [prune_files]
