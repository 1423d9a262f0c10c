"""Results as text: lines while they come in, the table at the end, Markdown, comparisons. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from bench.results import Answer, Result, Run, Verdict, human

MET = {True: "met", False: "MISSED", None: "-"}
WORSE_BY = 1.05
"""Less than that is no difference, however small the spread of the rounds was."""


def result_lines(result: Result) -> list[str]:
    """Tell one result: a line for each variant, a line for each target."""
    lines = [f"{result.question}" + (f"  ({result.note})" if result.note else "")]
    for name, answer in result.answers.items():
        if answer.median is None:
            lines.append(f"  {name:<36} {'-':>14}            {answer.reason}")
            continue
        ratio = f"x{answer.ratio:.3g}" if answer.ratio is not None else ""
        known = answer.known()
        spread = f"{len(known)} rounds, {min(known):.4g} to {max(known):.4g}" * (len(known) > 1)
        value = human(answer.median, result.unit)
        lines.append(f"  {name:<36} {value:>14} {ratio:>8}   {spread}{_remark(answer)}")
    lines += [f"  target {_verdict(verdict, result.unit)}" for verdict in result.targets]
    return lines


def _remark(answer: Answer) -> str:
    return f"  then: {answer.reason}" if answer.reason else ""


def _verdict(verdict: Verdict, unit: str) -> str:
    if verdict.value is None:
        return f"{verdict.target}: unknown ({verdict.reason})"
    relative = " x " in verdict.target
    value = f"x{verdict.value:.3g}" if relative else human(verdict.value, unit)
    return f"{verdict.target}: {MET[verdict.met]} ({value})"


# --- the table ------------------------------------------------------------------------------------

_HEAD = ("workload", "dedupfs", "target", "met", "beside it")


def _rows(run: Run) -> Iterator[tuple[str, str, str, str, str]]:
    for result in run.results:
        mine = result.answers.get(result.subject, Answer())
        verdicts = [
            verdict.target + (f" (x{verdict.value:.2f})" * (" x " in verdict.target))
            if verdict.value is not None
            else verdict.target
            for verdict in result.targets
        ]
        value = human(mine.median, result.unit) if mine.median is not None else "-"
        beside = [
            f"{name} {human(answer.median, result.unit)}"
            for name, answer in result.answers.items()
            if name != result.subject and answer.median is not None
        ]
        met = MET[result.met]
        yield (result.question, value, "; ".join(verdicts), met, "; ".join(beside))


def table(run: Run) -> str:
    """Return the whole as a table for a terminal."""
    rows = [_HEAD, *_rows(run)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for row in rows:
        cells = [row[column].ljust(widths[column]) for column in range(4)]
        lines.append("  ".join([*cells, row[4]]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, "", *summary(run)])


def summary(run: Run) -> list[str]:
    """Say how many targets were met, and what could not take part."""
    judged = [result for result in run.results if result.targets]
    met = sum(result.met is True for result in judged)
    missed = [result.key for result in judged if result.met is False]
    lines = [f"{met} of {len(judged)} lines with a target are met"]
    if missed:
        lines[0] += f"; missed: {', '.join(missed)}"
    if (scale := run.settings.get("scale", "1")) != "1":
        lines.append(f"scale {scale}: the targets are those of scale 1, so this says little")
    reasons: dict[str, set[str]] = {}
    for result in run.results:
        for name, answer in result.answers.items():
            if answer.median is None and answer.reason:
                reasons.setdefault(answer.reason, set()).add(name)
    lines += [f"not measured: {', '.join(sorted(v))}: {r}" for r, v in sorted(reasons.items())]
    return lines


def markdown(run: Run) -> str:
    """Return the table as README.md has it."""
    rows = [_HEAD, ("---",) * 5, *_rows(run)]
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    where = "; ".join(f"{name} {value}" for name, value in run.machine.items())
    programs = ", ".join(f"{name} {value}" for name, value in run.programs.items())
    settings = ", ".join(f"{name} {value}" for name, value in run.settings.items())
    parts = [where, "", programs, "", settings, "", *(f"| {line} |" for line in lines)]
    parts += ["", *summary(run)]
    for curve in run.curves:
        parts += ["", f"{curve.title} ({curve.unit}{', must be flat' * curve.flat})", ""]
        heads = [f"{value:g}" for value in curve.x]
        parts.append(f"| {curve.x_name} | {' | '.join(heads)} |")
        parts.append("|---" * (len(heads) + 1) + "|")
        parts += [
            f"| {name} | {' | '.join(human(value, curve.unit) for value in row)} |"
            for name, row in curve.y.items()
        ]
    return "\n".join(parts)


# --- two runs -------------------------------------------------------------------------------------


def worsening(old: Answer, new: Answer, better: str) -> bool:
    """Tell whether ``new`` is worse than ``old`` by more than the rounds of either differ."""
    if old.median is None or new.median is None:
        return False
    if better == "less":
        return min(new.known()) > max(old.known()) * WORSE_BY
    return max(new.known()) * WORSE_BY < min(old.known())


def comparison(old: Run, new: Run) -> tuple[str, int]:
    """Return a table of new by old for all that both measured, and how many lines got worse."""
    lines = [f"{'workload':<46} {'variant':<24} {'old':>12} {'new':>12} {'new/old':>8}"]
    worse = 0
    before = {result.key: result for result in old.results}
    for result in new.results:
        if (previous := before.get(result.key)) is None:
            continue
        for name, answer in result.answers.items():
            base = previous.answers.get(name, Answer())
            if answer.median is None or base.median is None:
                continue
            ours = name.startswith("dedupfs")
            mark = _mark(base, answer, result.better)
            worse += ours and mark == "WORSE"
            ratio = f"x{answer.median / base.median:.3g}" if base.median else "-"
            cells = (human(base.median, result.unit), human(answer.median, result.unit))
            lines.append(
                f"{result.question:<46.46} {name:<24.24} {cells[0]:>12} {cells[1]:>12} "
                f"{ratio:>8}  {mark if ours else mark.lower()}".rstrip()
            )
        if (previous.met, result.met) in {(True, False), (False, True)}:
            lines.append(f"{'':<46} target: {MET[previous.met]} before, {MET[result.met]} now")
    return "\n".join(lines), worse


def _mark(old: Answer, new: Answer, better: str) -> str:
    if worsening(old, new, better):
        return "WORSE"
    return "better" if worsening(new, old, better) else ""
