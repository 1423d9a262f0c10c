"""python -m bench: measures, prints a table, writes JSON; or shows and compares what it wrote.

What is asked, and how to read the answers: README.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from bench import copies, importing, jobs, opening, reading, scaling, trees, views, writing
from bench.commands import PREFIX, BenchError, reason, sweep
from bench.datasets import Scale
from bench.harness import Harness, refuse_unfair_python
from bench.machine import machine, missing, programs
from bench.plot import draw
from bench.report import comparison, markdown, table
from bench.results import Run, load, save

WORKLOADS: dict[str, Callable[[Harness], None]] = {
    "views": views.measure,
    "reading": reading.measure,
    "trees": trees.measure,
    "writing": writing.measure,
    "family": importing.measure_family,
    "history": importing.measure_history,
    "copies": copies.measure,
    "jobs": jobs.measure,
    "opening": opening.measure,
}
QUICK_SCALE = 1 / 16


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.table:
        print(markdown(load(arguments.table)))
        return 0
    if arguments.compare:
        text, worse = comparison(*map(load, arguments.compare))
        print(f"{text}\n{worse} of dedupfs's lines got worse by more than their rounds differ")
        return 1 if worse else 0
    refuse_unfair_python()
    return _measure(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a sixteenth of everything, one round")
    add("--json", type=Path, metavar="OUT", help="write all values there")
    add("--plot", type=Path, metavar="OUT", help="draw the scaling runs there (.svg, .png)")
    add("--scale", type=float, metavar="F", help="how much of everything (1.0)")
    add("--rounds", type=int, metavar="N", help="rounds of each workload (as time allows)")
    add("--directory", type=Path, metavar="DIR", help="work below DIR")
    add("--only", choices=sorted(WORKLOADS), action="append", help="only this workload")
    add("--without", metavar="PEER", action="append", default=[], help="leave this peer out")
    add(
        "--scaling",
        choices=("none", "small", "full"),
        help="how far to go (small; none with --only): full takes an hour",
    )
    add("--table", type=Path, metavar="JSON", help="print what a run wrote, as Markdown")
    add("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"), help="compare two runs")
    return parser


def _measure(arguments: argparse.Namespace) -> int:
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=arguments.directory)).resolve()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    run = Run({}, {}, {})
    try:
        harness = _harness(arguments, directory, run)
        _say_what(run)
        _workloads(arguments, harness)
    except KeyboardInterrupt:
        print("\nbench: interrupted; this is what there is", file=sys.stderr)
        return 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # cleaning up is short; let it end
        sweep(directory)
        _tell(arguments, run)
    return 0


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _harness(arguments: argparse.Namespace, directory: Path, run: Run) -> Harness:
    scale = arguments.scale or (QUICK_SCALE if arguments.quick else 1.0)
    rounds = arguments.rounds or (1 if arguments.quick else None)
    run.machine = machine(directory)
    run.programs = programs()
    run.settings = {"scale": f"{scale:g}", "rounds": str(rounds or "as time allows")}
    return Harness(directory, Scale(scale), run, rounds, frozenset(arguments.without))


def _say_what(run: Run) -> None:
    for name, value in {**run.machine, **run.settings}.items():
        print(f"{name:<12} {value}")
    print(f"{'programs':<12} {', '.join(f'{k} {v}' for k, v in run.programs.items())}")
    if command := missing():
        print(f"Some peers are missing. As root: {command}")


def _workloads(arguments: argparse.Namespace, harness: Harness) -> None:
    for name in arguments.only or WORKLOADS:
        _one(harness, name, WORKLOADS[name])
    how_far = arguments.scaling or ("none" if arguments.only else "small")
    if how_far != "none":
        _one(harness, f"scaling {how_far}", lambda h: scaling.measure(h, full=how_far == "full"))


def _one(harness: Harness, name: str, measure: Callable[[Harness], None]) -> None:
    print(f"\n--- {name} ---", flush=True)
    started = time.monotonic()
    try:
        measure(harness)
    except (BenchError, OSError) as error:
        print(f"bench: {name} ended: {reason(error)}", file=sys.stderr)
        harness.run.settings[f"{name} ended"] = reason(error)
    seconds = harness.run.seconds[name] = time.monotonic() - started
    print(f"--- {name}: {seconds:.0f} s ---", flush=True)


def _tell(arguments: argparse.Namespace, run: Run) -> None:
    if run.results:
        print(f"\n{table(run)}")
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in run.seconds.items()))
    if arguments.json:
        save(run, arguments.json)
    if arguments.plot and run.curves:
        draw(run.curves, arguments.plot)


if __name__ == "__main__":
    sys.exit(main())
