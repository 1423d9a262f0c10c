"""A program that works on a store beside its mounts: imports, removes, collects garbage, folds.

    python -m tests.powercut.others '{"store": ..., "sources": [...], "ledger": ..., ...}'

It notes each call and ends as tests/powercut/writer.py does.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from dedupfs.errors import DedupfsError
from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import collect
from dedupfs.namespace import live
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store
from dedupfs.transfer.ingest import IngestOptions, ingest_tree
from tests.powercut.ledger import Ledger
from tests.powercut.writer import Hands, PowerGone

IMPORTS_MAX = 4
PREFIX = "import-"


class Other:
    """Chooses what to do next."""

    def __init__(self, hands: Hands, sources: list[Path], rng: random.Random) -> None:
        self._hands = hands
        self._sources = sources
        self._rng = rng

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if self._hands.power_is_gone():
                return
            with Store.open(self._hands.store) as store:
                self._step(store)

    def _step(self, store: Store) -> None:
        catalog = SnapshotCatalog(store)
        mine = [info.name for info in catalog.list() if info.name.startswith(PREFIX)]
        choice = self._rng.choices(["import", "remove", "gc", "fold", "check"], [5, 2, 2, 1, 1])[0]
        if choice == "import" and len(mine) < IMPORTS_MAX:
            source = self._rng.choice(self._sources)
            name = f"{PREFIX}{self._rng.getrandbits(40):x}"
            with self._hands.noted("import", name=name, source=source.name):
                options = IngestOptions(reread=self._rng.random() < 0.5)
                ingest_tree(store, source, name, options=options)
        elif choice in ("import", "remove") and mine:
            name = self._rng.choice(mine)
            with self._hands.noted("remove", name=name):
                catalog.remove([name])
        elif choice == "gc":
            with self._hands.noted("gc"):
                collect(store)
        elif choice == "check":
            with self._hands.noted("check"):
                report = check(store)
                if not report.ok:
                    raise DedupfsError(f"{report.problems}")
        else:
            with self._hands.noted("fold"):
                live.fold_all(self._hands.store, _refuse)


def _refuse(problem: str) -> None:
    raise DedupfsError(problem)


def main(said: dict[str, Any]) -> None:
    ledger = Ledger(Path(said["ledger"]), said["number"])
    hands = Hands(Path(said["mount"]), Path(said["store"]), ledger)
    other = Other(hands, [Path(p) for p in said["sources"]], random.Random(said["seed"]))
    try:
        other.run(said["steps"])
    except PowerGone:
        pass
    except (OSError, DedupfsError):
        if not hands.power_is_gone():
            raise


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
