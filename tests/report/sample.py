"""A store with something for each part of the report, and names that attack the page."""

from __future__ import annotations

from pathlib import Path

from dedupfs.maintenance.overview import Overview, take_overview
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import Caller, View
from dedupfs.store import Store
from tests.maintenance.samples import SMALL, import_directory, make_directory, noise

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\x1b[31m\u202e{{ 7*7 }}"
)


def make_store(top: Path) -> Path:
    """Make a store of five snapshots and a view; return where it is."""
    with Store.create(top / "store", **SMALL) as store:
        catalog = SnapshotCatalog(store)
        source = make_directory(top / "source")
        (source / "<td><b>bold").write_bytes(noise("hostile", 30_000))
        (source / "caf\u00e9 \u65e5\u672c").write_bytes(noise("text", 9_000))
        for step in range(1, 6):
            (source / "medium").write_bytes(noise(step, 20_000 + 1000 * step))
            import_directory(store, source, f"step-{step}000")
            catalog.tag(f"step-{step}000", {"loss": f"{3 / step:.2f}"})
        catalog.tag("step-2000", {"note": HOSTILE})
        catalog.pin("step-1000", True)
        view = View.bring_back(store, "work", snapshot="step-3000")
        view.mkdir(1, b"new", 0o755, Caller(0, 0))
        view.close()
    return top / "store"


def overview_of(path: Path) -> Overview:
    with Store.open(path) as store:
        return take_overview(store)
