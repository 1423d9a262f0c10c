"""What was measured, as values: medians, ratios and whether a target is met. Measures nothing.

A result is one question, answered by several variants in the same rounds. A variant that has no
value in a round has None there, so that ratios are always taken within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec


@dataclass(frozen=True)
class Target:
    """What the subject of a question must reach: a value, or a multiple of another variant's."""

    relation: str
    factor: float
    of: str = ""

    def text(self, unit: str) -> str:
        if self.of:
            return f"{self.relation} {self.factor:g} x {self.of}"
        return f"{self.relation} {human(self.factor, unit)}"

    def holds(self, value: float) -> bool:
        return value <= self.factor if self.relation == "<=" else value >= self.factor


@dataclass(frozen=True)
class Question:
    """One line of the table. ``subject`` is the variant that the targets are for."""

    key: str
    text: str
    unit: str
    targets: tuple[Target, ...] = ()
    more_is_better: bool = False
    subject: str = "dedupfs"


class Answer(msgspec.Struct):
    """The values of one variant, or the reason why there are none."""

    values: list[float | None] = []
    median: float | None = None
    ratio: float | None = None
    reason: str = ""

    def known(self) -> list[float]:
        return [value for value in self.values if value is not None]


class Verdict(msgspec.Struct):
    """A target and what came of it: ``value`` is absolute, or the ratio when it is relative."""

    target: str
    met: bool | None
    value: float | None = None
    reason: str = ""


class Result(msgspec.Struct):
    """One question with all its answers; the first variant is what ratios are taken to."""

    key: str
    question: str
    unit: str
    better: str
    subject: str
    answers: dict[str, Answer]
    targets: list[Verdict] = []
    met: bool | None = None
    note: str = ""


class Curve(msgspec.Struct):
    """How one thing grows with another: ``y`` at each ``x``. ``flat``: it must not grow."""

    key: str
    title: str
    x_name: str
    unit: str
    x: list[float]
    y: dict[str, list[float]]
    flat: bool = True
    reason: str = ""


class Run(msgspec.Struct):
    """All that one run of the benchmarks says, and on what it was measured."""

    machine: dict[str, str]
    programs: dict[str, str]
    settings: dict[str, str]
    results: list[Result] = []
    curves: list[Curve] = []
    seconds: dict[str, float] = {}


def conclude(
    question: Question,
    values: Mapping[str, list[float | None]],
    reasons: Mapping[str, str],
    note: str = "",
) -> Result:
    """Make the result of a question from the values of the rounds."""
    answers = {}
    base: list[float | None] = next(iter(values.values()), [])
    for name in dict.fromkeys([*values, *reasons]):
        row = values.get(name, [])
        answer = Answer(row, reason=reasons.get(name, ""))
        if known := answer.known():
            answer.median = statistics.median(known)
            answer.ratio = ratio_of_rounds(row, base)
        answers[name] = answer
    verdicts = [_judge(question, target, answers) for target in question.targets]
    return Result(
        key=question.key,
        question=question.text,
        unit=question.unit,
        better="more" if question.more_is_better else "less",
        subject=question.subject,
        answers=answers,
        targets=verdicts,
        met=_all_met(verdicts),
        note=note,
    )


def ratio_of_rounds(values: list[float | None], base: list[float | None]) -> float | None:
    """Return the median over the rounds of value by base in the same round.

    Variants that share no round (a slow one runs in some only) are compared by their medians.
    """
    pairs = [
        (mine, other)
        for mine, other in zip(values, base, strict=False)
        if mine is not None and other is not None
    ]
    if pairs:
        ratios = [mine / other for mine, other in pairs if other]
        return statistics.median(ratios) if ratios else None
    known = [value for value in values if value is not None]
    others = [value for value in base if value is not None]
    if not known or not others or not statistics.median(others):
        return None
    return statistics.median(known) / statistics.median(others)


def _judge(question: Question, target: Target, answers: Mapping[str, Answer]) -> Verdict:
    text = target.text(question.unit)
    subject = answers.get(question.subject, Answer())
    if subject.median is None:
        return Verdict(text, None, reason=subject.reason or "not measured")
    if not target.of:
        return Verdict(text, target.holds(subject.median), subject.median)
    other = answers.get(target.of, Answer())
    ratio = ratio_of_rounds(subject.values, other.values)
    if ratio is None:
        return Verdict(text, None, reason=f"{target.of}: {other.reason or 'not measured'}")
    return Verdict(text, target.holds(ratio), ratio)


def _all_met(verdicts: list[Verdict]) -> bool | None:
    if any(verdict.met is False for verdict in verdicts):
        return False
    if not verdicts or any(verdict.met is None for verdict in verdicts):
        return None
    return True


# --- text and files -------------------------------------------------------------------------------


def human(value: float, unit: str) -> str:
    """Return a value as a person reads it: 1234567 B is 1.18 MiB."""
    if unit == "B":
        for name in ("B", "KiB", "MiB"):
            if abs(value) < 1024:
                return f"{value:.4g} {name}"
            value /= 1024
        return f"{value:.4g} GiB"
    if value >= 10_000:
        return f"{value:,.0f} {unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip() if value < 1000 else f"{value:.0f} {unit}".rstrip()


def save(run: Run, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n")


def load(path: Path) -> Run:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Run)
    except (OSError, msgspec.DecodeError) as error:
        raise SystemExit(f"bench: {path}: {error}") from error
