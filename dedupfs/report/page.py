"""The page: an overview laid out by a template, with its style sheet and script in it.

Whatever comes from the store is text: names are printed as a terminal would get them, and the
template escapes. The page's policy lets a browser load nothing and run nothing but our script.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from dedupfs.maintenance.overview import Matrix, Overview
from dedupfs.maintenance.usage import StoreUsage
from dedupfs.report.charts import (
    Chart,
    Part,
    SizeText,
    disk_chart,
    growth_chart,
    new_bytes_chart,
    prune_chart,
    short,
)
from dedupfs.transfer.report import printable


def render(overview: Overview, version: str, size: SizeText) -> str:
    """Return the page. ``size`` writes bytes for people."""
    script, style = _part("page.js"), _part("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FunctionLoader(_part),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters.update(
        size=size, when=when, iso=iso, name=_name, percent=percent, short=short, count="{:,}".format
    )
    parts = disk_parts(overview.usage)
    return environment.get_template("page.html").render(
        it=overview,
        version=version,
        snapshots=[space for space in overview.spaces if space.kind == "snapshot"],
        views=[space for space in overview.spaces if space.kind == "view"],
        largest_reach=max((space.reached_bytes for space in overview.spaces), default=0),
        coldest=_coldest(overview.matrix),
        parts=parts,
        charts=_charts(overview, parts, size),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        script=Markup(script),
        style=Markup(style),
    )


def _part(name: str) -> str:
    return (files("dedupfs.report") / name).read_text(encoding="utf-8")


def _shown(value: object) -> object:
    """Make text safe to look at: control characters and the like are escaped; HTML comes after."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return value


def _name(path: bytes) -> str:
    return printable(path.decode("utf-8", "backslashreplace"))


def when(time_ns: int) -> str:
    """Return a time to the second, in UTC; the page's script makes it the reader's own."""
    return _moment(time_ns).strftime("%Y-%m-%d %H:%M:%S")


def iso(time_ns: int) -> str:
    """Return a time as the ``datetime`` attribute has it."""
    return _moment(time_ns).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(time_ns: int) -> datetime:
    """Return a time; a crafted snapshot may claim one that no calendar has."""
    seconds = min(max(time_ns // 10**9, -62_135_596_800), 253_402_300_799)
    return datetime.fromtimestamp(seconds, UTC)


def percent(part: int, whole: int) -> str:
    """Return a share: ``0 %``, ``<0.1 %``, ``12.3 %``, ``100 %``."""
    if not part or not whole:
        return "0 %"
    share = 100 * part / whole
    if share < 0.1:
        return "<0.1 %"
    return f"{share:.0f} %" if share >= 99.95 else f"{share:.1f} %"


def disk_parts(usage: StoreUsage) -> list[Part]:
    """Return what the blocks of a store's disk hold; the rest is slack and files of views."""
    metadata_bytes = usage.metadata_stored_bytes + usage.header_bytes
    known = [
        Part("file data", usage.chunk_stored_bytes, "one"),
        Part("directories and recipes", metadata_bytes, "three"),
        Part("index", usage.index_bytes, "four"),
        Part("garbage", usage.garbage_disk_bytes, "two"),
    ]
    rest = usage.disk_bytes - sum(part.disk_bytes for part in known)
    return [part for part in (*known, Part("other", rest, "five")) if part.disk_bytes > 0]


def _coldest(matrix: Matrix) -> int:
    """Return the share in percent, a multiple of ten, that the matrix's colours begin at."""
    shares = [
        100 * shared // (row[number] or 1)
        for number, row in enumerate(matrix.rows)
        for shared in row
    ]
    return min(min(shares, default=0) // 10 * 10, 90)


def _charts(overview: Overview, parts: Sequence[Part], size: SizeText) -> dict[str, Chart]:
    drawn: dict[str, Callable[[], Chart]] = {}
    if overview.spaces and parts:
        drawn["disk"] = lambda: disk_chart(parts, size)
    if overview.growth:
        drawn["growth"] = lambda: growth_chart(overview.growth, size)
        drawn["new"] = lambda: new_bytes_chart(overview.growth, size)
    if overview.prunes:
        drawn["prune"] = lambda: prune_chart(overview.prunes, size)
    return {name: draw() for name, draw in drawn.items()}
