"""The texts that say what a prune keeps, as rules: ``loss:min=3``, ``30d``, ``tag:run``. Pure.

The rules themselves are ``retention.py``; docs/cli.md, "prune", says what the texts mean.
"""

import re
from collections.abc import Callable

from dedupfs.errors import UsageError
from dedupfs.maintenance.retention import (
    Best,
    Candidate,
    Chooser,
    Every,
    Last,
    Periodic,
    Policy,
    Span,
    Tagged,
    Within,
    prefix_of,
)

_UNITS = {"y": "years", "m": "months", "w": "weeks", "d": "days", "h": "hours", "min": "minutes"}
_DURATION = re.compile(r"(?:\d+(?:min|[ymwdh]))+", re.ASCII)
_PART = re.compile(r"(\d+)(min|[ymwdh])", re.ASCII)
_COUNT_MAX = 10**9
_PERIODS = ("hourly", "daily", "weekly", "monthly", "yearly")


def parse_policy(
    *,
    keep_last: str | None = None,
    keep_within: str | None = None,
    keep_tag: tuple[str, ...] = (),
    keep_best: tuple[str, ...] = (),
    keep_every: tuple[str, ...] = (),
    group_by: str = "all",
    allow_empty: bool = False,
    **periods: str | None,
) -> Policy:
    """Return what the texts of all options mean; those of ``periods`` are ``keep_daily``...

    Raises:
        UsageError: one is wrong, or together they keep nothing.
    """
    rules: list[Chooser] = []
    if keep_last is not None:
        rules.append(Last(parse_count("--keep-last", keep_last)))
    for period in _PERIODS:
        text = periods.get(f"keep_{period}")
        if text is not None:
            rules.append(Periodic(period, parse_count(f"--keep-{period}", text)))
    if keep_within is not None:
        rules.append(Within(parse_span(keep_within)))
    for text in keep_tag:
        key, equals, value = text.partition("=")
        if not key:
            raise UsageError(f"--keep-tag {text!r} is not of the form KEY or KEY=VALUE")
        rules.append(Tagged(key, value if equals else None))
    rules += [_parse_best(text) for text in keep_best]
    rules += [_parse_every(text) for text in keep_every]
    return Policy(tuple(rules), _parse_group(group_by), allow_empty)


def parse_count(option: str, text: str) -> int | None:
    """Return how many are to be kept; None for ``all``.

    Raises:
        UsageError: no such number; 0 is none, it would say to keep nothing.
    """
    if text == "all":
        return None
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 1 <= int(text) <= _COUNT_MAX:
        raise UsageError(f"{option} {text!r} is no count: write a number from 1, or 'all'")
    return int(text)


def parse_span(text: str) -> Span:
    """Return what ``36h``, ``30d`` or ``1y6m`` mean.

    Raises:
        UsageError: no duration.
    """
    if not _DURATION.fullmatch(text) or len(text) > 40:
        units = ", ".join(f"{unit} ({name})" for unit, name in _UNITS.items())
        raise UsageError(f"{text!r} is no duration: write numbers with {units}, as in 30d or 1y6m")
    amounts = dict.fromkeys(_UNITS, 0)
    for amount, unit in _PART.findall(text):
        amounts[unit] += int(amount)
    if max(amounts.values()) > _COUNT_MAX:
        raise UsageError(f"{text!r} is too long a duration")
    return Span(
        months=amounts["y"] * 12 + amounts["m"],
        days=amounts["w"] * 7 + amounts["d"],
        minutes=amounts["h"] * 60 + amounts["min"],
        text=text,
    )


def _parse_best(text: str) -> Chooser:
    metric, equals, count = text.partition("=")
    key, _, direction = metric.rpartition(":")
    if not key or direction not in ("min", "max"):
        raise UsageError(
            f"--keep-best {text!r} does not say what is best: write METRIC:min or METRIC:max, "
            "and =N for more than one"
        )
    best = parse_count(f"--keep-best {metric}", count) if equals else 1
    return Best(key, direction == "max", best)


def _parse_every(text: str) -> Chooser:
    key, colon, stride_text = text.rpartition(":")
    stride = parse_count(f"--keep-every {key}{colon}", stride_text)
    if stride is None or (colon and not key):
        raise UsageError(f"--keep-every {text!r} is not of the form N or TAG:N")
    return Every(stride, key)


def _parse_group(text: str) -> Callable[[Candidate], str]:
    if text == "all":
        return lambda _candidate: ""
    if text == "prefix":
        return lambda candidate: prefix_of(candidate.name)
    kind, _, key = text.partition(":")
    if kind != "tag" or not key:
        raise UsageError(f"--group-by {text!r}: write tag:KEY, prefix or all")
    return lambda candidate: candidate.tag(key) or ""
