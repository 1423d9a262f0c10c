"""The command top: what mounts are doing, from the counters of their daemons.

Asks over the control sockets, computes rates and draws; knows no store and no FUSE. What the
numbers mean: docs/cli.md.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import STORES
from dedupfs.cli.watching import mounted_stores, require_directories
from dedupfs.errors import DedupfsError, StoreError, UsageError
from dedupfs.namespace import live

INTERVAL_S_MIN = 0.1
INTERVAL_S_MAX = 3600.0
_ANSWER_S = 5.0
_OPERATIONS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """What one mount said at one moment. ``counted`` None: it cannot say, see ``problem``."""

    store: Path
    running: live.Running
    taken_s: float
    counted: live.Counted | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a mount did a second between two samples, or since it began."""

    seconds: float
    requests: dict[str, float]
    totals: dict[str, float]

    @property
    def requests_all(self) -> float:
        """Requests a second of all operations."""
        return sum(self.requests.values())


Found = list[tuple[Sample, Rates | None]]


@click.command()
@STORES
@click.option("--interval", type=float, default=2.0, show_default=True, metavar="SECONDS")
@click.option("--once", is_flag=True, help="Look once, over one interval, and end.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document a line and interval."
)
def top(stores: tuple[Path, ...], interval: float, once: bool, as_json: bool) -> None:
    """Show what mounts are doing: of each STORE, or of all stores that this user has mounted.

    \b
    requests   a second, and of which operations most
    read       bytes a second that readers got; written: bytes a second from writers
    waited     reads that waited for the disk in a thread; cached: all others
    found      bytes a second that the store had already; new: what it stored instead

    \b
    Examples:
      dedupfs top
      dedupfs top store/ --once
      dedupfs top store/ --json --interval 10 >> metrics.jsonl
    """
    if not INTERVAL_S_MIN <= interval <= INTERVAL_S_MAX:
        raise UsageError(f"--interval is {INTERVAL_S_MIN} to {INTERVAL_S_MAX:.0f} seconds")
    require_directories(stores)
    documents = _documents(stores, interval)
    if once:
        documents = itertools.islice(documents, 1)
    with suppress(KeyboardInterrupt):  # that is how one leaves it
        if as_json:
            for found in documents:
                print(json.dumps(_json(found)), flush=True)
        elif once or not sys.stdout.isatty():
            for found in documents:
                _print(found)
        else:
            _draw(documents)


def _documents(stores: tuple[Path, ...], interval_s: float) -> Iterator[Found]:
    """Yield all mounts with their rates, once an interval, for ever."""
    before = _samples(stores)
    due_s = time.monotonic()
    while True:
        due_s = max(due_s + interval_s, time.monotonic())
        time.sleep(max(0.0, due_s - time.monotonic()))
        now = _samples(stores)
        yield [(sample, _rates(sample, before.get(key))) for key, sample in now.items()]
        before = now


def _samples(stores: tuple[Path, ...]) -> dict[tuple[Path, str], Sample]:
    found: dict[tuple[Path, str], Sample] = {}
    for store in stores or mounted_stores():
        for daemon in _daemons(store):
            sample = _sample(store, daemon)
            if sample is not None:
                found[store, daemon.running.mountpoint] = sample
    return found


def _daemons(store: Path) -> Iterable[live.Daemon]:
    try:
        return list(live.daemons(store))
    except (DedupfsError, OSError) as exc:
        output.note(f"{store}: {exc}")
        return []


def _sample(store: Path, daemon: live.Daemon) -> Sample | None:
    """Ask one daemon; None when it has just ended."""
    counted, problem = None, ""
    try:
        reply = live.ask(daemon.socket_path, live.Counters(), timeout_s=_ANSWER_S)
        counted = reply if isinstance(reply, live.Counted) else None
    except UsageError:
        problem = "an older dedupfs, which counts nothing: send its supervisor SIGUSR2"
    except StoreError as exc:
        if not daemon.socket_path.exists():
            return None
        problem = str(exc)
    return Sample(store, daemon.running, time.monotonic(), counted, problem)


def _rates(sample: Sample, before: Sample | None) -> Rates | None:
    """Return what was done a second since ``before``; since it began, for a mount that is new."""
    now = sample.counted
    if now is None:
        return None
    old = before.counted if before is not None else None
    if before is None or old is None or old.since_ns != now.since_ns:
        seconds = max(1e-3, (time.time_ns() - now.since_ns) / 1e9)
        old = live.Counted(now.since_ns, {}, {}, {})
    else:
        seconds = max(1e-3, sample.taken_s - before.taken_s)
    return Rates(
        seconds,
        {
            name: (count - old.requests.get(name, 0)) / seconds
            for name, count in now.requests.items()
        },
        {name: (count - old.totals.get(name, 0)) / seconds for name, count in now.totals.items()},
    )


def _json(found: Found) -> dict[str, output.Json]:
    mounts: list[output.Json] = []
    for sample, rates in found:
        counted = sample.counted
        mounts.append(
            {
                "store": str(sample.store),
                "mountpoint": sample.running.mountpoint,
                "view": sample.running.view or None,
                "read_only": sample.running.read_only,
                "pid": sample.running.pid,
                "problem": sample.problem or None,
                "since_ns": counted.since_ns if counted else None,
                "requests_total": counted.requests if counted else None,
                "totals": counted.totals if counted else None,
                "gauges": counted.gauges if counted else None,
                "errors_total": counted.errors if counted else None,
                "seconds": round(rates.seconds, 3) if rates else None,
                "requests_per_second": _rounded(rates.requests) if rates else None,
                "per_second": _rounded(rates.totals) if rates else None,
            }
        )
    return {"time_ns": time.time_ns(), "mounts": mounts}


def _rounded(rates: dict[str, float]) -> dict[str, float]:
    return {name: round(rate, 1) for name, rate in rates.items()}


# --- for people -----------------------------------------------------------------------------------

_HEAD = (
    "MOUNTED ON", "VIEW", "PID", "SINCE", "REQ/S", "MOST", "READ/S", "CACHED", "WRITTEN/S",
    "FOUND/S", "NEW/S", "OPEN", "JOURNAL", "CPU", "MEMORY",
)  # fmt: skip
_RIGHT = (2, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14)


def _row(sample: Sample, rates: Rates | None) -> list[str]:
    running = sample.running
    who = [running.mountpoint, running.view or "(read-only)", str(running.pid)]
    counted = sample.counted
    if counted is None or rates is None:
        return [*who, sample.problem, *[""] * (len(_HEAD) - 4)]
    totals, gauges = rates.totals, counted.gauges
    return [
        *who,
        output.time_text(counted.since_ns),
        f"{rates.requests_all:,.0f}",
        _most(rates.requests),
        _size(totals.get("read_bytes")),
        _cached(rates),
        _size(totals.get("written_bytes")),
        _size(totals.get("found_bytes")),
        _size(totals.get("inserted_bytes")),
        str(gauges.get("open_files", "")),
        _size(gauges.get("journal_bytes")),
        f"{totals.get('cpu_us', 0.0) / 1e4:.0f}%",
        _size(gauges.get("memory_bytes")),
    ]


def _size(count: float | None) -> str:
    return "" if count is None else output.size(int(count))


def _most(requests: dict[str, float]) -> str:
    """Name the operations that were asked for most."""
    busiest = sorted(requests.items(), key=lambda pair: -pair[1])[:_OPERATIONS_SHOWN]
    return " ".join(f"{name} {rate:,.0f}" for name, rate in busiest if rate >= 1)


def _cached(rates: Rates) -> str:
    """Return how many reads waited for no disk, in percent."""
    reads = rates.requests.get("read", 0.0)
    return f"{100 * (1 - rates.totals.get('waited_reads', 0.0) / reads):.0f}%" if reads else ""


def _print(found: Found) -> None:
    if not found:
        output.print_line("nothing is mounted")
        return
    output.print_table(_HEAD, [_row(*pair) for pair in found], _RIGHT)


def _draw(documents: Iterator[Found]) -> None:
    """Redraw on a terminal until interrupted: lines that fit into 80 columns."""
    from rich.live import Live
    from rich.text import Text

    with Live(Text("..."), auto_refresh=False) as display:
        for found in documents:
            blocks = [output.printable(line) for pair in found for line in _block(*pair)]
            text = "\n".join(blocks) if found else "nothing is mounted"
            display.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)


def _block(sample: Sample, rates: Rates | None) -> list[str]:
    cells = dict(zip(_HEAD, _row(sample, rates), strict=True))
    first = f"{cells['MOUNTED ON']}  view {cells['VIEW']}, pid {cells['PID']}"
    if rates is None:
        return [first, f"  {sample.problem}", ""]
    cached = f" ({cells['CACHED']} cached)" if cells["CACHED"] else ""
    return [
        f"{first}, since {cells['SINCE']}",
        f"  {cells['REQ/S']} requests/s: {cells['MOST'] or 'none'}",
        f"  read {cells['READ/S']}/s{cached}, written {cells['WRITTEN/S']}/s, "
        f"found {cells['FOUND/S']}/s, new {cells['NEW/S']}/s",
        f"  {cells['OPEN']} open, journal {cells['JOURNAL']}, CPU {cells['CPU']}, "
        f"memory {cells['MEMORY']}",
        "",
    ]


COMMANDS: list[click.Command] = [top]
