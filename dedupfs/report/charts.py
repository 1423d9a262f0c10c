"""The report's charts: growth, new bytes, what the disk is used for, what prunes would free.

Each is drawn for several widths of the page, so that its text is hardly scaled. Numbers that a
chart shows are in a table or a list of the page as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dedupfs.maintenance.overview import Growth
from dedupfs.maintenance.playing import Prune
from dedupfs.report.svg import COLOURS, settings, svg_of

SizeText = Callable[[int], str]

_WIDTHS_IN = {"wide": 14.2, "medium": 8.6, "narrow": 4.4}

BARS_MAX = 200
"""More snapshots than this are drawn as one outline, without tooltips."""

_DAY_S = 86_400
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart, as SVG elements by the class of the pages that they are for."""

    drawn: dict[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the disk: what it is, how much, and in which of the page's colours."""

    name: str
    disk_bytes: int
    colour: str


@dataclass(slots=True)
class _Sheet:
    """One figure under way. ``ticks_max``: how many labels fit; ``tips``: tooltips by gid."""

    figure: Figure
    axes: Axes
    ticks_max: int
    tips: dict[str, Sequence[str]] = field(default_factory=dict)


def _draw(name: str, label: str, height_in: float, draw: Callable[[_Sheet], None]) -> Chart:
    drawn = {}
    for width, width_in in _WIDTHS_IN.items():
        with settings():
            figure = Figure(figsize=(width_in, height_in), dpi=72, layout="constrained")
            figure.patch.set_visible(False)
            axes = figure.add_subplot()
            axes.patch.set_visible(False)
            axes.tick_params(length=0)
            sheet = _Sheet(figure, axes, ticks_max=max(2, int(width_in / 1.8)))
            draw(sheet)
            drawn[width] = svg_of(figure, f"{name}-{width}", label, sheet.tips)
    return Chart(drawn)


def _unit(largest: int) -> tuple[int, str]:
    """Return the unit in which an axis up to ``largest`` bytes has small numbers."""
    power = 0
    while largest >= 1024 ** (power + 1) and power < len(_UNITS) - 1:
        power += 1
    return 1024**power, _UNITS[power]


def _bytes_axis(axes: Axes, largest: int, *, horizontal: bool = False) -> int:
    """Label an axis in one unit; return what to divide bytes by."""
    divisor, unit = _unit(largest)
    axis = axes.xaxis if horizontal else axes.yaxis
    axis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10], min_n_ticks=2))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} {unit}"))
    return divisor


def growth_chart(points: Sequence[Growth], size: SizeText) -> Chart:
    """Draw what all snapshots hold together against what the store takes for them."""
    times = [_days(point.created_ns) for point in points]

    def draw(sheet: _Sheet) -> None:
        axes = sheet.axes
        divisor = _bytes_axis(axes, max(p.logical_bytes for p in points))
        series = (
            ("as the files read", [p.logical_bytes for p in points], "two", "--"),
            ("as stored", [p.stored_bytes for p in points], "one", "-"),
        )
        for label, values, colour, dashes in series:
            heights = [value / divisor for value in values]
            ink = COLOURS[colour]
            axes.step(times, heights, dashes, where="post", color=ink, linewidth=2, label=label)
            if len(points) <= BARS_MAX:
                gid = f"tip-{colour}"
                axes.plot(times, heights, "o", color=ink, markersize=4, gid=gid, clip_on=False)
                pairs = zip(points, values, strict=True)
                sheet.tips[gid] = [f"{p.name}: {size(value)} {label}" for p, value in pairs]
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
        axes.set_xticks(*_time_ticks(times[0], times[-1], sheet.ticks_max))
        sheet.figure.legend(
            loc="outside upper left", ncols=2, frameon=False, labelcolor=COLOURS["ink"]
        )

    last = points[-1]
    label = (
        f"Growth over time: {len(points)} snapshots hold {size(last.logical_bytes)} as their files "
        f"read, {size(last.stored_bytes)} as stored"
    )
    return _draw("growth", label, 3.2, draw)


def _days(time_ns: int) -> float:
    """Return a time in days; a crafted snapshot may claim any."""
    return min(max(time_ns / (_DAY_S * 10**9), -700_000.0), 2_900_000.0)  # what datetime can say


def _time_ticks(first: float, last: float, count: int) -> tuple[list[float], list[str]]:
    """Return places from ``first`` to ``last``, in days, and their labels in UTC."""
    span_days = abs(last - first)
    if not span_days:
        count = 1
    pattern = "%Y-%m-%d" if span_days > 2 else "%m-%d %H:%M" if span_days > 0.1 else "%H:%M:%S"
    places = [first + (last - first) * number / max(count - 1, 1) for number in range(count)]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return places, [(epoch + timedelta(days=place)).strftime(pattern) for place in places]


def new_bytes_chart(points: Sequence[Growth], size: SizeText) -> Chart:
    """Draw how much each snapshot added, in the order they were made."""

    by_size = sorted(points, key=lambda point: point.new_bytes)
    largest, next_largest = by_size[-1], by_size[-2 if len(points) > 1 else -1]
    # The first import is mostly so much larger that nothing else could be seen beside it.
    is_cut = largest.new_bytes > 4 * next_largest.new_bytes > 0
    shown_bytes = next_largest.new_bytes * 5 // 4 if is_cut else largest.new_bytes

    def draw(sheet: _Sheet) -> None:
        axes = sheet.axes
        divisor = _bytes_axis(axes, shown_bytes)
        heights = [min(point.new_bytes, shown_bytes) / divisor for point in points]
        if len(points) > BARS_MAX:
            axes.stairs(heights, fill=True, color=COLOURS["one"], baseline=0)
        else:
            bars = axes.bar(range(len(points)), heights, width=0.8, color=COLOURS["one"])
            for number, (bar, point) in enumerate(zip(bars, points, strict=True)):
                bar.set_gid(f"tip-{number}")
                sheet.tips[f"tip-{number}"] = [f"{point.name}: {size(point.new_bytes)} new"]
        if is_cut:
            place = points.index(largest)
            is_left = place < len(points) / 2
            edge = place + 0.4 if is_left else place - 0.4
            axes.annotate(
                f"\N{UPWARDS ARROW} {size(largest.new_bytes)}, cut off here",
                (edge, shown_bytes / divisor),
                (6 if is_left else -6, -10),
                textcoords="offset points",
                ha="left" if is_left else "right",
            )
        places = _spread(len(points), sheet.ticks_max)
        axes.set_xticks(places, [short(points[place].name) for place in places])
        axes.set_ylim(0, max(shown_bytes / divisor, 1e-9))
        axes.margins(x=0.02)

    label = f"New bytes of each snapshot: the most, {size(largest.new_bytes)}, in {largest.name}"
    return _draw("new", label, 2.6, draw)


def _spread(count: int, wanted: int) -> list[int]:
    """Return up to ``wanted`` places among ``count``, the first and the last one included."""
    if count <= wanted:
        return list(range(count))
    return [round(number * (count - 1) / (wanted - 1)) for number in range(wanted)]


def short(name: str, length: int = 18) -> str:
    """Return a name that fits below a bar: of a long one, its begin and its end."""
    return (
        name if len(name) <= length else f"{name[: length - 8]}\N{HORIZONTAL ELLIPSIS}{name[-7:]}"
    )


def disk_chart(parts: Sequence[Part], size: SizeText) -> Chart:
    """Draw one bar of what the blocks of the store's disk are used for."""

    def draw(sheet: _Sheet) -> None:
        axes = sheet.axes
        left = 0
        for number, part in enumerate(parts):
            bar = axes.barh([0], [part.disk_bytes], left=left, color=COLOURS[part.colour])[0]
            bar.set_edgecolor(COLOURS["paper"])
            bar.set_gid(f"tip-{number}")
            sheet.tips[f"tip-{number}"] = [f"{part.name}: {size(part.disk_bytes)}"]
            left += part.disk_bytes
        axes.set_axis_off()
        axes.margins(0)

    listed = ", ".join(f"{part.name} {size(part.disk_bytes)}" for part in parts)
    return _draw("disk", f"What the disk is used for: {listed}", 0.5, draw)


def prune_chart(prunes: Sequence[Prune], size: SizeText) -> Chart:
    """Draw what each rule would free: on the disk if that is known of all, else records."""
    known = [prune.frees_bytes for prune in prunes if prune.frees_bytes is not None]
    freed = known if len(known) == len(prunes) else [prune.freed_bytes for prune in prunes]

    def draw(sheet: _Sheet) -> None:
        axes = sheet.axes
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        divisor = _bytes_axis(axes, max(freed), horizontal=True)
        widths = [value / divisor for value in freed]
        bars = axes.barh(range(len(prunes)), widths, height=0.62, color=COLOURS["three"])
        for number, (bar, prune) in enumerate(zip(bars, prunes, strict=True)):
            bar.set_gid(f"tip-{number}")
            sheet.tips[f"tip-{number}"] = [f"{prune.rule}: {size(freed[number])} freed"]
        rules = [prune.rule.replace(" --", ", ").replace("keep-", "") for prune in prunes]
        rules = [rule.removeprefix("--") for rule in rules]
        axes.set_yticks(range(len(prunes)), rules)
        axes.invert_yaxis()
        axes.set_xlim(0, max(max(widths) * 1.02, 1e-9))

    pairs = zip(prunes, freed, strict=True)
    listed = "; ".join(f"{prune.rule}: {size(value)}" for prune, value in pairs)
    label = f"What prunes would free. {listed}"
    return _draw("prune", label, 0.7 + 0.32 * len(prunes), draw)
