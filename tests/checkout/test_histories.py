"""Whatever is done to a store and its checkouts in whatever order, every checkout stays right.

Method: random imports, checkouts in all modes, updates, removals of snapshots and of checkouts, gc
and the loss of the index; after each step the store is sound and every checkout is verified with
all its bytes, against the store and against the directory it was imported from.
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

from dedupfs.checkout.make import choose_link
from dedupfs.checkout.place import find_checkout
from dedupfs.checkout.verify import verify_checkout
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store, Table
from tests.checkout.places import SETTINGS, check_out, remove, sound, update
from tests.conftest import Scale
from tests.maintenance.samples import import_directory, lose_index, noise

LINKS = ["symlink", "hardlink", "copy"]


class History:
    """A store, sources that are snapshots of it, and checkouts with the source that each shows."""

    def __init__(self, top: Path, rng: random.Random) -> None:
        self.top = top
        self.path = top / "store"
        self.rng = rng
        self.shown: dict[Path, Path] = {}
        self.made = 0
        with Store.create(self.path, **SETTINGS):
            pass

    def next_path(self, prefix: str) -> Path:
        self.made += 1
        return self.top / f"{prefix}{self.made}"

    def step(self) -> str:
        if self.rng.random() < 0.1:
            lose_index(self.path)
            assert reindex(self.path).ok
        with Store.open(self.path) as store:
            names = [info.name for info in SnapshotCatalog(store).list()]
            steps = [self.add, self.collect]
            if names:
                steps += [self.check_out, self.check_out, self.drop_snapshot]
            if self.shown:
                steps += [self.update, self.update, self.end]
            step = self.rng.choice(steps)
            step(store, names)
            sound(store)
            self.compare(store)
        return step.__name__

    def add(self, store: Store, names: list[str]) -> None:
        """Large files share parts with each other, and with those of other snapshots."""
        source = self.next_path("source")
        (source / "below").mkdir(parents=True)
        for number in range(self.rng.randrange(1, 5)):
            parts = [noise(self.rng.randrange(6), 15_000) for _ in range(self.rng.randrange(1, 6))]
            name = f"below/{number}" if self.rng.random() < 0.5 else str(number)
            (source / name).write_bytes(b"".join(parts))
        import_directory(store, source, source.name)

    def collect(self, store: Store, names: list[str]) -> None:
        collect(store)

    def check_out(self, store: Store, names: list[str]) -> None:
        name, directory = self.rng.choice(names), self.next_path("out")
        check_out(store, name, directory, self.rng.choice(LINKS))
        self.shown[directory] = self.top / name

    def drop_snapshot(self, store: Store, names: list[str]) -> None:
        SnapshotCatalog(store).remove([self.rng.choice(names)])

    def update(self, store: Store, names: list[str]) -> None:
        directory = self.rng.choice(list(self.shown))
        name = self.rng.choice(names) if names and self.rng.random() < 0.8 else None
        link = self.rng.choice([*LINKS, None])
        update(store, directory, name, link=link)
        if name is not None:
            self.shown[directory] = self.top / name

    def end(self, store: Store, names: list[str]) -> None:
        directory = self.rng.choice(list(self.shown))
        assert not remove(store, directory).kept
        assert not directory.exists()
        del self.shown[directory]

    def compare(self, store: Store) -> None:
        for directory, source in self.shown.items():
            report = verify_checkout(store, find_checkout(store, directory), directory, full=True)
            assert report.ok, report.findings
            assert not report.findings
            assert files(directory) == files(source)


def files(top: Path) -> dict[str, bytes]:
    found = (Path(base) / name for base, _, names in os.walk(top) for name in names)
    return {str(path.relative_to(top)): path.read_bytes() for path in found}


def test_every_checkout_stays_right(tmp_path: Path, scale: Scale) -> None:
    seed = 5 if os.environ.get("CI") == "true" else random.randrange(1 << 32)
    history = History(tmp_path, random.Random(seed))
    done: list[str] = []
    try:
        done.extend(history.step() for _ in range(scale(25, 1000)))
    except BaseException as exc:
        exc.add_note(f"seed {seed}, after {done}")
        raise
    with Store.open(history.path) as store:
        for directory in list(history.shown):
            remove(store, directory)
        SnapshotCatalog(store).remove([info.name for info in SnapshotCatalog(store).list()])
        collect(store)
        with store.reading() as txn:
            assert not txn.count(Table.RECORDS)
        sound(store)


def test_auto_is_the_best_that_works(tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="dedupfs-", dir="/dev/shm") as elsewhere,
        Store.create(tmp_path / "store", **SETTINGS) as store,
    ):
        fd = os.open(tmp_path, os.O_RDONLY)
        other = os.open(elsewhere, os.O_RDONLY)
        try:
            assert choose_link(store, fd, "auto") in ("reflink", "hardlink")
            assert choose_link(store, other, "auto") == "symlink"
        finally:
            os.close(fd)
            os.close(other)
        assert not os.listdir(elsewhere)
        assert not [name for name in os.listdir(store.path / "run") if name.startswith("import")]
        sound(store)
