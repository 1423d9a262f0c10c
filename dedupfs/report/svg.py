"""matplotlib's figures as SVG that belongs into a page: small, themed by its CSS, with tooltips.

Text stays text, colours are names that the page's style sheet fills in for light, dark and print,
and nothing refers to anything outside.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

COLOURS = {
    "ink": "#010101",
    "muted": "#010102",
    "grid": "#010103",
    "one": "#010104",
    "two": "#010105",
    "three": "#010106",
    "four": "#010107",
    "five": "#010108",
    "paper": "#010109",
}
"""What stands for the page's colours while matplotlib draws; no colour that anyone would see."""

_VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}
_COLOUR = re.compile("|".join(_VARIABLES))
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dedupfs",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: never looked for in vain
    "font.size": 11.0,
    "text.color": COLOURS["ink"],
    "text.parse_math": False,  # names are no formulas
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["grid"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.6,
    "xtick.major.pad": 7,
    "ytick.major.pad": 7,
    "xtick.color": COLOURS["grid"],
    "ytick.color": COLOURS["grid"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "path.simplify": False,
    "timezone": "UTC",
}
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@contextmanager
def settings() -> Iterator[None]:
    """Draw with the page's settings, whatever the user's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def svg_of(figure: Figure, prefix: str, label: str, tips: Mapping[str, Sequence[str]]) -> str:
    """Return a figure as an element for HTML.

    ``prefix`` goes before all ids, which must be unique in the page; ``label`` is what is read out
    instead of the picture; ``tips`` are the tooltips of what was drawn with these gids: one, or one
    for each marker of a line.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata=_METADATA)
    root = ElementTree.fromstring(buffer.getvalue())
    _strip(root, tips)
    _rename(root, prefix)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _strip(element: ElementTree.Element, tips: Mapping[str, Sequence[str]]) -> None:
    """Take out namespaces, metadata and the style sheet, which would hold for the whole page."""
    element.tag = element.tag.rpartition("}")[2]
    for name in list(element.attrib):
        plain = name.rpartition("}")[2]
        element.set(plain, _themed(element.attrib.pop(name)))
    for child in list(element):
        if child.tag.rpartition("}")[2] in ("metadata", "style"):
            element.remove(child)
        else:
            _strip(child, tips)
    found = tips.get(element.get("id", ""))
    if found is None:
        return
    marks = list(element.iter("use")) or [element]
    for mark, tip in zip(marks, found, strict=True):
        title = ElementTree.Element("title")
        title.text = tip
        mark.insert(0, title)
        mark.set("class", "tip")


def _themed(value: str) -> str:
    return _COLOUR.sub(lambda match: _VARIABLES[match[0]], value)


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Keep only ids that something refers to, and make them this figure's own."""
    used = {
        found for e in root.iter() for v in e.attrib.values() for found in _REFERENCE.findall(v)
    }
    used |= {e.attrib["href"].removeprefix("#") for e in root.iter() if "href" in e.attrib}
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                if value in used:
                    element.set("id", f"{prefix}-{value}")
                else:
                    del element.attrib["id"]
            elif name == "href":
                element.set(name, f"#{prefix}-{value.removeprefix('#')}")
            elif "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{prefix}-"))
