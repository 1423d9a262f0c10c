"""What docs/cli.md says of the rules of ``prune``, as directly as it can be said.

Each rule is asked of one snapshot at a time: is it kept? The calendar is that of central Europe and
is worked out here from its own definition, so nothing is shared with the code but the words.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

ZONE = "CET-1CEST,M3.5.0,M10.5.0/3"
"""The same calendar for the C library: the last Sundays of March and October, at 1:00 UTC."""
EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()
DAY_S = 86_400


@dataclass(frozen=True)
class Shot:
    """A snapshot, as the model sees it; ``number`` tells which is newer of the same time."""

    number: int
    name: str
    time_ns: int
    tags: dict[str, str] = field(default_factory=dict)
    pinned: bool = False

    def is_newer_than(self, other: Shot) -> bool:
        if self.time_ns != other.time_ns:
            return self.time_ns > other.time_ns
        return self.number > other.number


def switch_s(year: int, month: int) -> int:
    """Return when the clocks are changed: the last Sunday of a month with 31 days, 1:00 UTC."""
    day = datetime.date(year, month, 31)
    while day.isoweekday() != 7:
        day -= datetime.timedelta(days=1)
    return (day.toordinal() - EPOCH_DAY) * DAY_S + 3600


def offset_s(time_s: int) -> int:
    """Return how far local time is ahead of UTC."""
    year = datetime.date.fromordinal(time_s // DAY_S + EPOCH_DAY).year
    return 7200 if switch_s(year, 3) <= time_s < switch_s(year, 10) else 3600


def local_s(shot: Shot) -> int:
    """Return what the clock on the wall showed, in seconds since it showed 1970."""
    time_s = shot.time_ns // 10**9
    return time_s + offset_s(time_s)


def period_of(shot: Shot, kind: str) -> object:
    hour, day = local_s(shot) // 3600, local_s(shot) // DAY_S
    date = datetime.date.fromordinal(day + EPOCH_DAY)
    if kind == "hourly":
        return hour
    if kind == "daily":
        return day
    if kind == "weekly":
        return (day + 3) // 7  # 1970-01-01 was a Thursday; ISO weeks begin on Mondays
    return (date.year, date.month) if kind == "monthly" else date.year


def keeps_last(shot: Shot, group: list[Shot], count: int) -> bool:
    return sum(other.is_newer_than(shot) for other in group) < count


def keeps_periodic(shot: Shot, group: list[Shot], kind: str, count: int) -> bool:
    mine = period_of(shot, kind)
    is_oldest = not any(shot.is_newer_than(other) for other in group)
    if is_oldest and len({period_of(other, kind) for other in group}) < count:
        return True
    newer = [other for other in group if other.is_newer_than(shot)]
    if any(period_of(other, kind) == mine for other in newer):
        return False
    return len({period_of(other, kind) for other in newer}) < count


def keeps_within(
    shot: Shot, group: list[Shot], now_ns: int, months: int, days: int, minutes: int
) -> bool:
    newest_ns = max(other.time_ns for other in group)
    return shot.time_ns >= before(min(newest_ns, now_ns), months, days, minutes)


def before(time_ns: int, months: int, days: int, minutes: int) -> int:
    time_ns -= minutes * 60 * 10**9
    return calendar_before(time_ns, months, days) if months or days else time_ns


def calendar_before(time_ns: int, months: int, days: int) -> int:
    time_s, rest_ns = divmod(time_ns, 10**9)
    ahead_s = offset_s(time_s)
    day, clock_s = divmod(time_s + ahead_s, DAY_S)
    was_second_time = ahead_s == 3600 and offset_s(time_s - 3600) == 7200
    date = datetime.date.fromordinal(day + EPOCH_DAY)
    wanted = date.day
    for _ in range(months):
        date = (date.replace(day=1) - datetime.timedelta(days=1)).replace(day=1)
        in_month = [date + datetime.timedelta(days=after) for after in range(wanted)]
        date = max(one for one in in_month if one.month == date.month)
    day = date.toordinal() - EPOCH_DAY - days
    wall_s = day * DAY_S + clock_s
    possible = [ahead for ahead in (7200, 3600) if offset_s(wall_s - ahead) == ahead]
    if len(possible) == 2:  # the hour that comes twice
        ahead_s = 3600 if was_second_time else 7200
    elif possible:
        ahead_s = possible[0]
    else:  # the hour that is left out
        ahead_s = 7200 if was_second_time else 3600
    return (wall_s - ahead_s) * 10**9 + rest_ns


def keeps_best(shot: Shot, group: list[Shot], key: str, highest: bool, count: int) -> bool:
    mine = number_in(shot, key)
    if mine is None:
        return False
    better = 0
    for other in group:
        theirs = number_in(other, key)
        if theirs is None:
            continue
        if theirs == mine:
            better += other.is_newer_than(shot)
        else:
            better += (theirs > mine) == highest
    return better < count


def number_in(shot: Shot, key: str) -> float | None:
    text = shot.tags.get(key, "")
    if text in ("", "nan", "inf", "-inf", "none"):
        return None
    return float(text)


def keeps_every(shot: Shot, stride: int, key: str) -> bool:
    if key:
        text = shot.tags.get(key, "x")
        return text.isdecimal() and int(text) % stride == 0
    digits = ""
    for character in reversed(shot.name):
        if character.isdecimal():
            digits = character + digits
        elif digits:
            break
    return bool(digits) and int(digits) % stride == 0


def prefix(name: str) -> str:
    shorter = name.rstrip("".join(set(name) - set("0123456789")))
    return shorter.rstrip("0123456789") if shorter else name
