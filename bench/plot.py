"""The scaling runs as a picture, by matplotlib where it is installed. Knows values alone."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.results import Curve

INSTALL = "pip install matplotlib, or dedupfs's optional dependencies 'bench'"


def draw(curves: Sequence[Curve], path: Path) -> bool:
    """Write a picture of one panel for each curve; its kind is that of the path's suffix."""
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError:
        print(f"bench: no plot: needs matplotlib ({INSTALL})", file=sys.stderr)
        return False
    figure = figures.Figure(figsize=(11, 4 * ((len(curves) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(curves) + 1) // 2, 2, squeeze=False).flat
    for panel, curve in zip(panels, curves, strict=False):
        for name, row in curve.y.items():
            panel.plot(curve.x, row, marker="o", label=name)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(curve.title)
        panel.set_xlabel(curve.x_name)
        panel.set_ylabel(curve.unit)
        panel.grid(visible=True, which="major", alpha=0.3)
        panel.legend(fontsize="small")
    for panel in list(figure.axes)[len(curves) :]:
        panel.set_visible(False)
    figure.savefig(path)
    return True
