"""The options that say what a prune keeps. Knows no store.

Their texts are read by ``maintenance/policy_text.py``; docs/cli.md, "prune", says what they mean.
"""

import functools
from collections.abc import Callable
from typing import TypeVar

import click

from dedupfs.cli.arguments import completed_with

Command = TypeVar("Command", bound=Callable[..., object])

_PERIODS = ("hourly", "daily", "weekly", "monthly", "yearly")

_OPTIONS = [
    click.option("--keep-last", metavar="N", help="Keep the newest N."),
    *(
        click.option(
            f"--keep-{period}", metavar="N", help=f"Keep the newest of each of the last N {what}."
        )
        for period, what in zip(
            _PERIODS, ("hours", "days", "ISO weeks", "months", "years"), strict=True
        )
    ),
    click.option(
        "--keep-within",
        metavar="DURATION",
        help="Keep all that are at most that much older than the newest: 36h, 30d, 1y6m.",
    ),
    click.option(
        "--keep-tag",
        metavar="K[=V]",
        multiple=True,
        shell_complete=completed_with("tag"),
        help="Keep all with this tag; repeatable.",
    ),
    click.option(
        "--keep-best",
        metavar="METRIC:min|max[=N]",
        multiple=True,
        help="Keep the N best (default 1) by the number in tag METRIC; repeatable.",
    ),
    click.option(
        "--keep-every",
        metavar="[TAG:]N",
        multiple=True,
        help="Keep steps that N divides: the last digits of the name, or the number in TAG.",
    ),
    click.option(
        "--group-by",
        metavar="tag:K|prefix|all",
        default="all",
        help="Apply the rules to each value of tag K, or each name up to its last digits.",
    ),
    click.option("--allow-empty", is_flag=True, help="Let all of a group go if no rule keeps any."),
]


def keep_options(command: Command) -> Command:
    """Add the options that say what is kept; the command gets one argument, ``policy``."""

    @functools.wraps(command)
    def with_policy(**given: object) -> object:
        from dedupfs.maintenance.policy_text import parse_policy

        texts = {name: given.pop(name) for name in _NAMES}
        return command(policy=parse_policy(**texts), **given)  # type: ignore[arg-type]

    decorated: Callable[..., object] = with_policy
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[return-value]


_NAMES = (
    "keep_last",
    *(f"keep_{period}" for period in _PERIODS),
    *("keep_within", "keep_tag", "keep_best", "keep_every", "group_by", "allow_empty"),
)
