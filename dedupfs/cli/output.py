"""How commands print: sizes, times, tables, JSON, progress. Knows no store.

Standard output gets results, standard error everything else; progress is drawn only when standard
error is a terminal.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import click

from dedupfs.errors import UsageError

if TYPE_CHECKING:
    from types import TracebackType

    ExceptionInfo = (
        tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    )

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from dedupfs.transfer.report import Progress

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
Row = Sequence[str]

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_FACTORS: dict[str, int] = {"": 1, "B": 1}
for _power, _unit in enumerate(_UNITS, start=1):
    _FACTORS[_unit] = _FACTORS[_unit[0]] = 1 << 10 * _power


def size(count: int) -> str:
    """Return ``count`` bytes in the largest binary unit that leaves at least 1."""
    if abs(count) < 1024:
        return f"{count} B"
    power = 1
    while abs(count) >= 1023.95 * 1024**power and power < len(_UNITS):
        power += 1
    return f"{count / 1024**power:.1f} {_UNITS[power - 1]}"


def parse_size(text: str) -> int:
    """Return the bytes that ``64KiB``, ``64K`` or ``65536`` mean.

    Raises:
        UsageError: no size.
    """
    number = text.strip().rstrip("KMGTPEiB")
    unit = text.strip()[len(number) :]
    factor = _FACTORS.get(unit)
    if factor is None or not number.strip().isdecimal():
        raise UsageError(f"{text!r} is no size: write bytes, or a number with KiB, MiB, GiB...")
    return int(number) * factor


def time_text(time_ns: int) -> str:
    """Return a time to the second, in the local time zone; one beyond any calendar in seconds."""
    seconds = time_ns // 10**9
    try:
        return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"@{seconds}"


def count_text(count: int, noun: str) -> str:
    """Return ``1 file``, ``2 files``, ``12,345 files``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def text_of(path: bytes) -> str:
    """Return a path for JSON; bytes that are no text become lone surrogates, as in os.fsdecode."""
    return os.fsdecode(path)


def print_json(value: Json) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2))


def print_json_array(values: Iterable[Json]) -> None:
    """Print a JSON array, an element a line, as the elements come."""
    separator = "[\n"
    for value in values:
        click.echo(separator + "  " + json.dumps(value), nl=False)
        separator = ",\n"
    click.echo("\n]" if separator != "[\n" else "[]")


def printable(text: str) -> str:
    """Return ``text`` fit for a terminal: names, tags and messages may hold anything."""
    from dedupfs.transfer.report import printable as escaped

    return escaped(text)


def print_line(text: str) -> None:
    """Print one line."""
    click.echo(printable(text))


def print_table(head: Row, rows: Iterable[Row], right: Iterable[int] = ()) -> None:
    """Print aligned columns; those in ``right`` are aligned to the right. Nothing for no rows."""
    lines = [head, *([printable(cell) for cell in row] for row in rows)]
    if len(lines) == 1:
        return
    to_right = set(right)
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = [
            cell.rjust(width) if column in to_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print_line("  ".join(cells).rstrip())


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print a name and a value a line, the values below each other."""
    listed = list(fields)
    width = max(len(name) for name, _ in listed)
    for name, value in listed:
        print_line(f"{name.ljust(width)}  {value}")


def note(message: str) -> None:
    """Say something that is no result, on standard error."""
    click.echo(f"dedupfs: {printable(message)}", err=True)


class LineFormatter(logging.Formatter):
    """A log record is a line, whatever names it speaks of; only tracebacks are more.

    Their lines are indented: none of them, with whatever name in it, can pass for a record.
    """

    def formatException(self, ei: "ExceptionInfo") -> str:
        """Return the traceback."""
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"  {printable(line)}" for line in lines)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Escape what a terminal, or a reader of lines, could take for more than text."""
        record.message = printable(record.message)
        return super().formatMessage(record)


def log_to_stderr(level: int, line_format: str, *, force: bool = False) -> None:
    """Set up the log of this process; ``force``: in place of one that was set up before."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(line_format))
    logging.basicConfig(level=level, handlers=[handler], force=force)


class Meter(Protocol):
    """What long work tells about itself."""

    def update(self, done: int, total: int, what: str = "") -> None:
        """Hear how much of how much is done."""


class _SilentMeter:
    def update(self, done: int, total: int, what: str = "") -> None:
        """Draw nothing."""


class _BarMeter:
    """A bar of bytes, drawn at most ten times a second."""

    def __init__(self, progress: "RichProgress", task: "TaskID") -> None:
        self._progress = progress
        self._task = task

    def update(self, done: int, total: int, what: str = "") -> None:
        """Note the numbers; rich draws them when it is time to."""
        self._progress.update(self._task, completed=done, total=total, what=what[-40:])


def meter(title: str, *, is_bytes: bool = True) -> AbstractContextManager[Meter]:
    """Return a context with a progress bar, or with nothing where nobody watches."""
    return _bar(title, is_bytes=is_bytes) if is_watched() else _silence()


def shown_on(bar: Meter) -> "Callable[[Progress], None]":
    """Return what shows the progress of a transfer on a bar."""
    from dedupfs.transfer.report import shown

    def show(progress: "Progress") -> None:
        bar.update(progress.bytes_done, progress.bytes_total, shown(progress.path))

    return show


def is_watched() -> bool:
    """Whether somebody may look at progress, so that it is worth finding out the total."""
    return sys.stderr.isatty()


@contextmanager
def _silence() -> Iterator[Meter]:
    yield _SilentMeter()


@contextmanager
def _bar(title: str, *, is_bytes: bool) -> Iterator[Meter]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts: list[ProgressColumn] = [MofNCompleteColumn()]
    if is_bytes:
        amounts = [DownloadColumn(binary_units=True), TransferSpeedColumn()]
    columns = [TextColumn("{task.description}"), BarColumn(), *amounts, TimeRemainingColumn()]
    console = Console(stderr=True)
    with Progress(
        *columns, TextColumn("{task.fields[what]}", markup=False), console=console, transient=True
    ) as progress:
        yield _BarMeter(progress, progress.add_task(title, total=None, what=""))
