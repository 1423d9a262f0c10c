"""The rules of prune keep what their description says, for any history.

Method: Hypothesis draws up to 100 snapshots (times around changes of the clocks, year ends and
ties; tags; pins) and some rules; what ``decide`` keeps must be what retention_model.py says, which
asks each snapshot by itself and works out the calendar on its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedupfs.errors import UsageError
from dedupfs.maintenance.retention import (
    Best,
    Candidate,
    Chooser,
    Decision,
    Every,
    Last,
    Moment,
    Periodic,
    Policy,
    Span,
    Tagged,
    Within,
    decide,
    prefix_of,
    spare,
    step_in_name,
)
from tests.maintenance import retention_model as model
from tests.maintenance.retention_model import Shot

NS = 10**9
HOUR_NS = 3600 * NS
KINDS = ("hourly", "daily", "weekly", "monthly", "yearly")
Question = Callable[[Shot, list[Shot]], bool]


def at(year: int, month: int, day: int, hour: int = 0) -> int:
    return int(datetime(year, month, day, hour, tzinfo=UTC).timestamp()) * NS


@pytest.fixture(autouse=True)
def central_europe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", model.ZONE)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


CORNERS = st.sampled_from(
    [
        *(at(2025, 3, 30, hour) for hour in (0, 1, 2)),  # the clocks go forward
        *(at(2025, 10, 26, hour) for hour in (0, 1, 2)),  # and back
        *(at(2020, 12, 31, 23), at(2021, 1, 1), at(2021, 1, 3, 23), at(2024, 12, 30)),
        *(at(2024, 2, 29, 12), at(2023, 2, 28, 12), at(2025, 5, 31, 10)),
    ]
)
STEPS = st.sampled_from([1, NS, 1800 * NS, HOUR_NS, 23 * HOUR_NS, 24 * HOUR_NS, 7 * 24 * HOUR_NS])
TIMES = st.builds(
    lambda corner, step, times: corner + step * times, CORNERS, STEPS, st.integers(-40, 40)
)
NUMBERS = st.sampled_from(["1.5", "1.50", "-2", "0", "3e-4", "7", "nan", "inf", "none"])
TAGS = st.fixed_dictionaries(
    {},
    optional={
        "loss": NUMBERS,
        "step": st.sampled_from(["0", "10", "25", "100", "-10", "1e2"]),
        "run": st.sampled_from(["a", "b"]),
    },
)
STEMS = st.sampled_from(["step-", "7b-step-", "x", "2024-"])


@st.composite
def histories(draw: st.DrawFn) -> list[Shot]:
    drawn = draw(
        st.lists(st.tuples(STEMS, TIMES, TAGS, st.integers(0, 9)), min_size=1, max_size=100)
    )
    return [
        Shot(number, f"{stem}{number * 5}", time_ns, tags, pinned=lot == 0)
        for number, (stem, time_ns, tags, lot) in enumerate(drawn)
    ]


@st.composite
def rules(draw: st.DrawFn) -> tuple[Chooser, Question]:
    """Draw a rule, and the same as a question to the model."""
    count = draw(st.integers(1, 12))
    match draw(st.sampled_from(["last", *KINDS, "within", "tag", "best", "every"])):
        case "last":
            return Last(count), lambda shot, group: model.keeps_last(shot, group, count)
        case "within":
            months, days = draw(st.sampled_from([(0, 0), (1, 0), (0, 3), (14, 2)]))
            minutes = draw(st.sampled_from([0, 90, 3000]))
            now_ns = draw(TIMES)
            span = Span(months, days, minutes, "that")
            return _at(now_ns, Within(span)), lambda shot, group: model.keeps_within(
                shot, group, now_ns, months, days, minutes
            )
        case "tag":
            value = draw(st.sampled_from([None, "a"]))
            return Tagged(
                "run", value
            ), lambda shot, _group: "run" in shot.tags and value in (None, shot.tags["run"])
        case "best":
            highest = draw(st.booleans())
            return Best("loss", highest, count), lambda shot, group: model.keeps_best(
                shot, group, "loss", highest, count
            )
        case "every":
            stride, key = draw(st.sampled_from([5, 10, 100])), draw(st.sampled_from(["", "step"]))
            return Every(stride, key), lambda shot, _: model.keeps_every(shot, stride, key)
        case kind:
            return Periodic(kind, count), lambda shot, group: model.keeps_periodic(
                shot, group, kind, count
            )


def _at(now_ns: int, rule: Chooser) -> Chooser:
    """Return a rule that has a time of its own, so that each example can have another."""
    return lambda group, _moment: rule(group, Moment(now_ns))


def candidate(shot: Shot) -> Candidate:
    return Candidate(shot.name, shot.time_ns, shot.number, shot.tags, shot.pinned)


def decided(history: list[Shot], *chosen: Chooser, **settings: Any) -> list[Decision]:
    if not any(shot.tags.get("loss", "nan") not in ("nan", "inf", "none") for shot in history):
        chosen = tuple(rule for rule in chosen if not isinstance(rule, Best)) or (Last(1),)
    policy = Policy(chosen, may_empty=True, **settings)
    return decide(policy, [candidate(shot) for shot in history], Moment(0))


def kept(history: list[Shot], *chosen: Chooser, **settings: Any) -> set[str]:
    return {one.candidate.name for one in decided(history, *chosen, **settings) if one.stays}


def has_number(history: list[Shot]) -> bool:
    return any(model.number_in(shot, "loss") is not None for shot in history)


@settings(max_examples=150)
@given(history=histories(), drawn=st.lists(rules(), min_size=1, max_size=4))
def test_the_rules_keep_what_their_description_says(
    history: list[Shot], drawn: list[tuple[Chooser, Question]]
) -> None:
    if not has_number(history):
        drawn = [pair for pair in drawn if not isinstance(pair[0], Best)]
    if not drawn:
        return
    expected = {
        shot.name
        for shot in history
        if shot.pinned or any(keeps(shot, history) for _, keeps in drawn)
    }
    assert kept(history, *(rule for rule, _ in drawn)) == expected


@settings(max_examples=60)
@given(history=histories(), drawn=st.lists(rules(), min_size=1, max_size=3), extra=rules())
def test_pruning_twice_removes_nothing_more_and_one_rule_more_keeps_no_less(
    history: list[Shot], drawn: list[tuple[Chooser, Question]], extra: tuple[Chooser, Question]
) -> None:
    chosen = [rule for rule, _ in drawn]
    stays = kept(history, *chosen)
    left = [shot for shot in history if shot.name in stays]
    assert kept(left, *chosen) == stays
    assert kept(history, *chosen, extra[0]) >= stays
    pinned = [
        Shot(shot.number, shot.name, shot.time_ns, shot.tags, pinned=True) for shot in history
    ]
    assert len(kept(pinned, *chosen)) == len(history)


@given(TIMES, st.integers(0, 30), st.integers(0, 70), st.integers(0, 5000))
def test_a_span_is_counted_back_by_the_calendar(
    time_ns: int, months: int, days: int, minutes: int
) -> None:
    found = Span(months, days, minutes).before(time_ns, Moment(0))
    assert found == model.before(time_ns, months, days, minutes)


@settings(max_examples=60)
@given(history=histories(), kind=st.sampled_from(KINDS), count=st.integers(1, 30))
def test_a_larger_count_keeps_no_less(history: list[Shot], kind: str, count: int) -> None:
    for small, large in (
        (Periodic(kind, count), Periodic(kind, count + 1)),
        (Periodic(kind, count), Periodic(kind, None)),
        (Last(count), Last(count + 1)),
    ):
        assert kept(history, small) <= kept(history, large)


@settings(max_examples=60)
@given(history=histories(), pair=rules())
def test_groups_are_pruned_as_if_each_was_alone(
    history: list[Shot], pair: tuple[Chooser, Question]
) -> None:
    rule, keeps = pair
    if isinstance(rule, Best) and not has_number(history):
        return
    for group_of, model_of in (
        (lambda one: one.tag("run") or "", lambda shot: shot.tags.get("run", "")),
        (lambda one: prefix_of(one.name), lambda shot: model.prefix(shot.name)),
    ):
        expected = set()
        for shot in history:
            group = [other for other in history if model_of(other) == model_of(shot)]
            if shot.pinned or keeps(shot, group):
                expected.add(shot.name)
        assert kept(history, rule, group_of=group_of) == expected


@given(histories(), st.integers(0, 100))
def test_a_budget_spares_the_newest_that_need_not_go(history: list[Shot], count: int) -> None:
    decisions = decided(history, Last(3))
    going = [one.candidate.name for one in reversed(decisions) if not one.stays]
    after = spare(decisions, lambda names: len(names) >= count)
    assert [one.candidate.name for one in reversed(after) if not one.stays] == going[:count]
    assert [one.candidate for one in after] == [one.candidate for one in decisions]


def history_of(*times_ns: int, **tags: list[str]) -> list[Shot]:
    return [
        Shot(
            number,
            f"s{number}",
            time_ns,
            {key: values[number] for key, values in tags.items() if values[number]},
        )
        for number, time_ns in enumerate(times_ns)
    ]


def reasons(decisions: list[Decision]) -> dict[str, tuple[str, ...]]:
    return {one.candidate.name: one.reasons for one in decisions}


def test_reasons_say_everything_that_keeps_a_snapshot() -> None:
    history = history_of(at(2024, 12, 30), at(2024, 12, 31), at(2025, 1, 1), loss=["3", "1", "2"])
    found = reasons(decided(history, Last(1), Periodic("weekly", 2), Best("loss", False, 1)))
    assert found == {
        "s2": ("last 1", "weekly 2025-W01"),
        "s1": ("best loss 1: 1",),
        "s0": ("weekly: the oldest",),
    }


def test_an_hour_that_comes_twice_is_one_period() -> None:
    first, second = at(2025, 10, 26, 0), at(2025, 10, 26, 1)  # 2:00, and 2:00 once more
    assert kept(history_of(first, second), Periodic("hourly", 1)) == {"s1"}


def test_the_time_zone_decides_what_a_day_is() -> None:
    times = at(2025, 6, 1, 21), at(2025, 6, 1, 23)  # one day in London, two in Berlin
    for zone, days in ((None, 2), (timezone(timedelta(hours=1)), 2), (UTC, 1)):
        decisions = decide(
            Policy((Periodic("daily", 2),)),
            [candidate(shot) for shot in history_of(*times)],
            Moment(0, zone),
        )
        named = {reason for one in decisions for reason in one.reasons if "oldest" not in reason}
        assert len(named) == days if zone is not UTC else named == {"daily 2025-06-01"}


def test_a_wrong_clock_does_not_make_all_others_old() -> None:
    now_ns = at(2025, 6, 10)
    history = history_of(at(2025, 6, 1), at(2025, 6, 9), at(2095, 1, 1))
    assert kept(history, _at(now_ns, Within(Span(days=7)))) == {"s1", "s2"}


def test_times_beyond_any_calendar_are_sorted_all_the_same() -> None:
    history = history_of(-(10**30), 0, 10**30)
    for kind in KINDS:
        assert kept(history, Periodic(kind, 2)) == {"s1", "s2"}
    assert kept(history, Within(Span(months=12 * 10**8, text="ever"))) >= {"s1", "s2"}


def test_nothing_is_removed_by_accident() -> None:
    candidates = [candidate(shot) for shot in history_of(1, 2, loss=["nan", "much"])]
    for policy, said in (
        (Policy(()), "no rule"),
        (Policy((Tagged("release"),)), "no rule keeps any of them"),
        (Policy((Tagged("loss", "nan"),), lambda one: one.name), "group 's1'"),
        (Policy((Last(1), Best("loss", False, 1))), "none has a number in a tag 'loss'"),
    ):
        with pytest.raises(UsageError, match=said):
            decide(policy, candidates, Moment(0))
    everything = decide(Policy((Tagged("release"),), may_empty=True), candidates, Moment(0))
    assert not any(one.stays for one in everything)


@pytest.mark.parametrize(
    ("name", "step", "prefix"),
    [
        ("step-1000", 1000, "step-"),
        ("7b-step-0010-ema", 10, "7b-step-"),
        ("12", 12, ""),
        ("final", None, "final"),
        ("step-٣", None, "step-٣"),
    ],
)
def test_steps_and_prefixes_are_cut_from_names(name: str, step: int | None, prefix: str) -> None:
    assert (step_in_name(name), prefix_of(name)) == (step, prefix)
