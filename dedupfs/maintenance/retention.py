"""Which of many snapshots (or checkpoint directories) rules keep, and why. Pure: reads no store, no
disk and no clock.

Rules look at one group at a time, each for itself, and what any of them keeps stays: one rule more
never keeps less. The semantics for users are in docs/cli.md, "prune"; tests hold them against a
model that is written in another way.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import MAXYEAR, MINYEAR, UTC, datetime, timedelta, tzinfo

from dedupfs.errors import UsageError

_SECOND_NS = 10**9
_LAST_DIGITS = re.compile(r"(\d+)\D*\Z", re.ASCII)
# What datetime can say in every time zone; a crafted snapshot may claim any time.
_EARLIEST_S = int(datetime(MINYEAR, 1, 3, tzinfo=UTC).timestamp())
_LATEST_S = int(datetime(MAXYEAR, 12, 29, tzinfo=UTC).timestamp())


@dataclass(frozen=True, slots=True)
class Candidate:
    """What rules know of one snapshot. ``order`` tells which of two of the same time is newer."""

    name: str
    time_ns: int
    order: int = 0
    tags: Mapping[str, str] | None = None
    pinned: bool = False

    @property
    def age_key(self) -> tuple[int, int, str]:
        """Sorts the newest last, and no two alike."""
        return (self.time_ns, self.order, self.name)

    def tag(self, key: str) -> str | None:
        """Return the value of a tag."""
        return self.tags.get(key) if self.tags is not None else None

    def number(self, key: str) -> float | None:
        """Return the finite number in a tag, None if there is no such number."""
        try:
            value = float(self.tag(key) or "")
        except ValueError:
            return None
        return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Moment:
    """When rules are applied, and where: ``zone`` None is the time zone of this process."""

    now_ns: int
    zone: tzinfo | None = None

    def local(self, time_ns: int) -> datetime:
        """Return a time as the clock on the wall showed it, to the second."""
        seconds = min(max(time_ns // _SECOND_NS, _EARLIEST_S), _LATEST_S)
        return datetime.fromtimestamp(seconds, tz=self.zone)


Reasons = Iterator[tuple[Candidate, str]]
Chooser = Callable[[Sequence[Candidate], Moment], Reasons]
"""A rule: of a group, newest first and never empty, yields whom it keeps and why."""


@dataclass(frozen=True, slots=True)
class Last:
    """The newest ``count``; None: all."""

    count: int | None

    def __call__(self, group: Sequence[Candidate], _moment: Moment) -> Reasons:
        """Yield the first of the group."""
        for number, candidate in enumerate(group[: self.count], start=1):
            yield candidate, f"last {number}"


PERIODS: dict[str, Callable[[datetime], str]] = {
    "hourly": lambda time: f"{time:%Y-%m-%d %H}:00",
    "daily": lambda time: f"{time:%Y-%m-%d}",
    "weekly": lambda time: "{}-W{:02}".format(*time.isocalendar()),
    "monthly": lambda time: f"{time:%Y-%m}",
    "yearly": lambda time: f"{time:%Y}",
}
"""What two times of the same hour, day, week (of ISO 8601), month or year have in common."""


@dataclass(frozen=True, slots=True)
class Periodic:
    """The newest of each of the last ``count`` periods that have any (None: of all of them).

    While there are fewer periods than that, the oldest of all stays as well: so the first snapshot
    of a history stands in for the periods that it has not lived through yet.
    """

    period: str
    count: int | None

    def __call__(self, group: Sequence[Candidate], moment: Moment) -> Reasons:
        """Yield the newest of each period, and perhaps the oldest of all."""
        period_of = PERIODS[self.period]
        newest: dict[str, Candidate] = {}
        for candidate in group:
            newest.setdefault(period_of(moment.local(candidate.time_ns)), candidate)
        for name, candidate in list(newest.items())[: self.count]:
            yield candidate, f"{self.period} {name}"
        has_room = self.count is None or len(newest) < self.count
        if has_room and not any(candidate is group[-1] for candidate in newest.values()):
            yield group[-1], f"{self.period}: the oldest"


@dataclass(frozen=True, slots=True)
class Span:
    """A length of time. Months and days are those of the calendar, hours and minutes are exact."""

    months: int = 0
    days: int = 0
    minutes: int = 0
    text: str = ""

    def before(self, time_ns: int, moment: Moment) -> int:
        """Return the time that lies this span before ``time_ns``."""
        time_ns -= self.minutes * 60 * _SECOND_NS
        if not self.months and not self.days:
            return time_ns
        local = moment.local(time_ns)
        year, month = divmod(local.year * 12 + local.month - 1 - self.months, 12)
        try:
            first = local.replace(year=year, month=month + 1, day=1)
            length = ((first + timedelta(days=31)).replace(day=1) - first).days
            shifted = first.replace(day=min(local.day, length)) - timedelta(days=self.days)
            return int(shifted.timestamp()) * _SECOND_NS + time_ns % _SECOND_NS
        except (ValueError, OverflowError):  # before the calendar begins
            return _EARLIEST_S * _SECOND_NS


@dataclass(frozen=True, slots=True)
class Within:
    """All that are at most ``span`` older than the newest of the group.

    Not than now: a history that nobody adds to would lose everything in time. One from the future
    counts as one of now, or a wrong clock could make all others look old.
    """

    span: Span

    def __call__(self, group: Sequence[Candidate], moment: Moment) -> Reasons:
        """Yield those that are young enough."""
        begin_ns = self.span.before(min(group[0].time_ns, moment.now_ns), moment)
        for candidate in group:
            if candidate.time_ns >= begin_ns:
                yield candidate, f"within {self.span.text}"


@dataclass(frozen=True, slots=True)
class Tagged:
    """All with the tag ``key``, or with this value of it."""

    key: str
    value: str | None = None

    def __call__(self, group: Sequence[Candidate], _moment: Moment) -> Reasons:
        """Yield those that have the tag."""
        for candidate in group:
            value = candidate.tag(self.key)
            if value is not None and self.value in (None, value):
                yield candidate, f"tag {self.key}={value}"


@dataclass(frozen=True, slots=True)
class Best:
    """The ``count`` with the lowest or highest finite number in the tag ``key``; of equal ones the
    newest. Those without such a number are left to the other rules.
    """

    key: str
    highest: bool
    count: int | None

    def __call__(self, group: Sequence[Candidate], _moment: Moment) -> Reasons:
        """Yield the best ones, the best first."""
        sign = -1 if self.highest else 1
        numbers = [(candidate.number(self.key), candidate) for candidate in group]
        ranked = sorted(
            ((sign * number, candidate) for number, candidate in numbers if number is not None),
            key=lambda pair: pair[0],  # stable: the group is sorted by age
        )
        for rank, (_, candidate) in enumerate(ranked[: self.count], start=1):
            yield candidate, f"best {self.key} {rank}: {candidate.tag(self.key)}"


@dataclass(frozen=True, slots=True)
class Every:
    """All whose step is a multiple of ``stride``: the number in the tag ``key``, or, with an empty
    key, the last digits of the name.
    """

    stride: int
    key: str = ""

    def __call__(self, group: Sequence[Candidate], _moment: Moment) -> Reasons:
        """Yield those whose step divides."""
        for candidate in group:
            step = self._step(candidate)
            if step is not None and step % self.stride == 0:
                yield candidate, f"every {self.stride}: {step}"

    def _step(self, candidate: Candidate) -> int | None:
        if not self.key:
            return step_in_name(candidate.name)
        text = candidate.tag(self.key) or ""
        return int(text) if re.fullmatch(r"[0-9]{1,30}", text) else None


def step_in_name(name: str) -> int | None:
    """Return the last digits in a name as a number, as in ``step-1000`` or ``ckpt_12.pt``."""
    found = _LAST_DIGITS.search(name)
    return int(found[1]) if found else None


def prefix_of(name: str) -> str:
    """Return a name up to its last digits: the group of ``run7-step-1000`` is ``run7-step-``."""
    found = _LAST_DIGITS.search(name)
    return name[: found.start()] if found else name


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules, and what they look at together: ``group_of`` names the group of a candidate.

    ``may_empty``: a group of which no rule keeps anything may go altogether.
    """

    rules: tuple[Chooser, ...]
    group_of: Callable[[Candidate], str] = lambda _candidate: ""
    may_empty: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one candidate. ``reasons``: everything that keeps it; none, and it goes."""

    candidate: Candidate
    group: str
    reasons: tuple[str, ...]

    @property
    def stays(self) -> bool:
        """Whether it is kept."""
        return bool(self.reasons)


def decide(policy: Policy, candidates: Sequence[Candidate], moment: Moment) -> list[Decision]:
    """Apply the rules; decisions by group, the newest of each first.

    Raises:
        UsageError: there is no rule; a rule asks for a metric that no candidate has; or a whole
            group would go and must not.
    """
    if not policy.rules:
        raise UsageError("no rule says what to keep: give at least one --keep option")
    _require_metrics(policy, candidates)
    groups: dict[str, list[Candidate]] = {}
    for candidate in sorted(candidates, key=_age, reverse=True):
        groups.setdefault(policy.group_of(candidate), []).append(candidate)
    decisions = []
    for name, group in sorted(groups.items()):
        decided = _decide_group(policy, name, group, moment)
        if not policy.may_empty and not any(decision.stays for decision in decided):
            where = f"group {name!r}" if name else "them"
            raise UsageError(
                f"no rule keeps any of {where} ({len(group)} in all); nothing was removed "
                "(--allow-empty if that is meant)"
            )
        decisions += decided
    return decisions


def spare(
    decisions: Sequence[Decision], is_enough: Callable[[Sequence[str]], bool]
) -> list[Decision]:
    """Let only as many go as are needed, the oldest first, of those that no rule keeps.

    ``is_enough`` says so of the names of some; of more names it never says less.
    """
    going = sorted((one.candidate for one in decisions if not one.stays), key=_age)
    names = [candidate.name for candidate in going]
    needed = bisect_left(range(len(names)), True, key=lambda count: is_enough(names[:count]))
    spared = set(names[needed:])
    return [
        replace(one, reasons=("there is room",)) if one.candidate.name in spared else one
        for one in decisions
    ]


def _age(candidate: Candidate) -> tuple[int, int, str]:
    return candidate.age_key


def _decide_group(
    policy: Policy, name: str, group: Sequence[Candidate], moment: Moment
) -> list[Decision]:
    reasons: dict[str, list[str]] = {candidate.name: [] for candidate in group}
    for candidate in group:
        if candidate.pinned:
            reasons[candidate.name].append("pinned")
    for rule in policy.rules:
        for candidate, reason in rule(group, moment):
            reasons[candidate.name].append(reason)
    return [Decision(candidate, name, tuple(reasons[candidate.name])) for candidate in group]


def _require_metrics(policy: Policy, candidates: Sequence[Candidate]) -> None:
    """Refuse a metric that nothing has: it is misspelt, and the best would go."""
    if not candidates:
        return
    for rule in policy.rules:
        if isinstance(rule, Best) and all(one.number(rule.key) is None for one in candidates):
            raise UsageError(f"--keep-best {rule.key}: none has a number in a tag {rule.key!r}")
