"""Timing, comparing and reporting. Knows nothing of dedupfs but how to start its command.

The variants of one question take turns within each round, so that a busy minute of a shared
machine hits all of them, and what is reported of a time is its median and its ratio to the first
variant's of the same rounds.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND_SECONDS_MAX = 1800


@dataclass
class Result:
    """One line of a report: a question, whose answer is one value per variant."""

    question: str
    unit: str
    values: dict[str, list[float]]
    note: str = ""

    def median(self, variant: str) -> float:
        return statistics.median(self.values[variant])

    def ratio(self, variant: str) -> float:
        """Median over rounds of this variant's value by the first variant's in the same round."""
        first = next(iter(self.values))
        pairs = zip(self.values[variant], self.values[first], strict=True)
        return statistics.median(mine / base if base else 0.0 for mine, base in pairs)


@dataclass
class Report:
    """All results of a run, and what they were measured on."""

    machine: dict[str, str]
    settings: dict[str, str]
    results: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.results.append(result)
        print(format_result(result), flush=True)

    def write(self, path: Path) -> None:
        results = [
            {
                **asdict(result),
                "median": {name: result.median(name) for name in result.values},
                "ratio": {name: result.ratio(name) for name in result.values},
            }
            for result in self.results
        ]
        document = {"machine": self.machine, "settings": self.settings, "results": results}
        path.write_text(json.dumps(document, indent=2) + "\n")


def format_result(result: Result) -> str:
    """Return the lines that tell a result to a person."""
    lines = [f"{result.question}" + (f"  ({result.note})" if result.note else "")]
    for name, values in result.values.items():
        spread = f"{min(values):.4g} to {max(values):.4g}" if len(values) > 1 else ""
        ratio = f"x{result.ratio(name):.3g}"
        lines.append(
            f"  {name:<34} {result.median(name):>12.5g} {result.unit:<6} {ratio:>9}  {spread}"
        )
    return "\n".join(lines)


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One way to do a thing. Only ``run`` is timed, unless it returns the value itself."""

    name: str
    run: Callable[[], float | None]
    prepare: Callable[[], object] = lambda: None
    finish: Callable[[], object] = lambda: None


def compare(
    question: str, unit: str, variants: Sequence[Variant], rounds: int, note: str = ""
) -> Result:
    """Run all variants in each round, beginning with another one each time."""
    values: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for number in range(rounds):
        turn = number % len(variants)
        for variant in [*variants[turn:], *variants[:turn]]:
            variant.prepare()
            try:
                started = time.perf_counter()
                value = variant.run()
                elapsed = time.perf_counter() - started
            finally:
                variant.finish()
            values[variant.name].append(elapsed if value is None else value)
    return Result(question, unit, values, note)


def run(*command: str | Path) -> str:
    """Run a command to its end; an error ends the benchmark with what the command said."""
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS_MAX,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stderr}")
    return done.stdout


def dedupfs(*arguments: str | Path) -> str:
    """Run the dedupfs of this checkout as a command of its own, start-up included."""
    return run(sys.executable, "-m", "dedupfs", *arguments)


@contextmanager
def mounted(store: Path, mountpoint: Path, *options: str) -> Iterator[Path]:
    """Mount a store for the time of the context."""
    mountpoint.mkdir(exist_ok=True)
    dedupfs("mount", store, mountpoint, *options)
    try:
        yield mountpoint
    finally:
        dedupfs("umount", mountpoint)


def disk_bytes(path: Path) -> int:
    """Return the blocks that the file system has given out below ``path``."""
    seen = set()
    total = 0
    for directory, _names, files in os.walk(path):
        for name in [".", *files]:
            found = os.lstat(os.path.join(directory, name))
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_blocks * 512
    return total


def file_count(path: Path) -> int:
    """Return how many inodes the file system keeps for ``path``."""
    found = (
        os.lstat(os.path.join(d, name)).st_ino for d, _, fs in os.walk(path) for name in [".", *fs]
    )
    return len(set(found))


def remove(path: Path) -> None:
    """Remove a tree, if it is there."""
    shutil.rmtree(path, ignore_errors=True)


# --- the machine ----------------------------------------------------------------------------------


def machine(directory: Path) -> dict[str, str]:
    """Return what a figure is worthless without."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "commit": _commit(),
        "processor": _first_field("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _first_field("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "system": _first_field("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "file system": run("stat", "--file-system", "--format=%T", directory).strip(),
        "python": platform.python_version(),
        "user": "root" if os.geteuid() == 0 else "ordinary",
        **{name: _version(name) for name in ("pyfuse3", "trio", "lmdb", "xxhash", "pyfastcdc")},
    }


def _first_field(path: str, key: str, separator: str = ":") -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return "unknown"
    for line in lines:
        name, found, value = line.partition(separator)
        if found and name.strip() == key:
            return value.strip()
    return "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    git = ("git", "-C", str(ROOT))
    try:
        commit = run(*git, "rev-parse", "--short", "HEAD").strip()
        changed = run(*git, "status", "--porcelain", "--untracked-files=no", "--", "dedupfs")
    except (SystemExit, FileNotFoundError):
        return "unknown"
    return f"{commit} and changes" if changed else commit


def refuse_unfair_python() -> None:
    """A Python that skips or adds work would measure something else than users get."""
    if not __debug__ or sys.flags.dev_mode or sys.gettrace() is not None:
        raise SystemExit("bench: run it without -O, -X dev and tracing")
