"""Random histories of a store against a model that is only a dict of contents.

Method: Hypothesis makes and removes snapshots whose files share runs of bytes, collects, loses the
index, and reopens. After each gc the store must be sound, must hold exactly what the model says
byte for byte, and must have freed exactly what was foretold; its packs must have become smaller.
"""

from __future__ import annotations

import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.maintenance.scrub import scrub
from dedupfs.maintenance.usage import disk_usage, exclusive_bytes, store_usage
from dedupfs.model import Extent, RecordId, RecordKind, TreeEntry
from dedupfs.namespace.contents import ContentWriter, hole_bytes, store_content
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import directory_entry, put_tree
from dedupfs.store import Store, Table
from tests.maintenance.samples import SMALL, noise, read_back

pytestmark = pytest.mark.unmeasured

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755

RUN_BYTES = (700, 3000, 9000, 20_000)
# A file is a few runs out of a small set, so that files share chunks at shifted offsets.
FILES = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 5), st.sampled_from(RUN_BYTES)),
        st.tuples(st.just(-1), st.sampled_from(RUN_BYTES)),  # a hole
    ),
    max_size=6,
)
TREES = st.dictionaries(st.sampled_from(["a", "b", "c/d", "c/e", "c/f"]), FILES, max_size=5)
NAMES = st.sampled_from(["one", "two", "three", "four"])

Runs = list[tuple[int, int]]
Model = dict[str, bytes]


def bytes_of(runs: Runs) -> bytes:
    return b"".join(noise(seed, length) if seed >= 0 else bytes(length) for seed, length in runs)


class Histories(RuleBasedStateMachine):
    @initialize()
    def make_store(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="dedupfs-history-"))
        self.path = self.directory / "store"
        self.store = Store.create(self.path, **{**SMALL, "pack_bytes_max": 24 << 10})
        self.model: dict[str, Model] = {}
        self.unknown_garbage = False

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.directory)

    # --- what users do ----------------------------------------------------------------------------

    def put_file(self, name: bytes, slot: int, data: bytes) -> TreeEntry:
        if len(data) >= SMALL["verbatim_bytes_min"]:
            extents = self.put_verbatim(data)
        else:
            writer = ContentWriter(self.store)
            writer.feed(data)
            extents = writer.finish()
        content = store_content(self.store, extents)
        holes = hole_bytes(extents)
        return TreeEntry(name, slot, FILE, size=len(data), content=content, hole_bytes=holes)

    def put_verbatim(self, data: bytes) -> list[Extent]:
        extents: list[Extent] = []
        fresh: dict[RecordId, tuple[int, Extent]] = {}
        start = 0
        for length in self.store.chunker.cut(data, final=True):
            piece = data[start : start + length]
            identity, known = self.store.probe_chunk(piece)
            extent = Extent(identity, length)
            if not known:
                fresh.setdefault(identity, (start, extent))
            extents.append(extent)
            start += length
        if fresh:
            path = self.directory / "file"
            path.write_bytes(data)
            self.store.put_verbatim(path, list(fresh.values()))
            path.unlink()
        return extents

    def put_directory(self, files: Model, prefix: str = "") -> TreeEntry:
        here = {name[len(prefix) :] for name in files if name.startswith(prefix)}
        entries = []
        for slot, name in enumerate(sorted({part.partition("/")[0] for part in here}), start=1):
            if prefix + name in files:
                entries.append(self.put_file(name.encode(), slot, files[prefix + name]))
            else:
                below = self.put_directory(files, f"{prefix}{name}/")
                entries.append(
                    TreeEntry(
                        name.encode(),
                        slot,
                        DIRECTORY,
                        size=below.size,
                        content=below.content,
                        nlink=below.nlink,
                        count=below.count,
                    )
                )
        tree_id = put_tree(self.store, entries, len(entries) + 1) if entries else None
        return directory_entry(b"", 0, entries, tree_id, mode=DIRECTORY, uid=0, gid=0, mtime_ns=1)

    @rule(name=NAMES, tree=TREES)
    def add(self, name: str, tree: dict[str, Runs]) -> None:
        if name in self.model:
            return
        files = {path: bytes_of(runs) for path, runs in tree.items()}
        SnapshotCatalog(self.store).add(name, self.put_directory(files), created_ns=1)
        self.model[name] = files

    @precondition(lambda self: self.model)
    @rule(source=st.randoms(use_true_random=False), name=NAMES)
    def clone(self, source: object, name: str) -> None:
        if name not in self.model:
            old = sorted(self.model)[0]
            SnapshotCatalog(self.store).clone(old, name)
            self.model[name] = self.model[old]

    @precondition(lambda self: self.model)
    @rule(name=NAMES)
    def rename(self, name: str) -> None:
        if name not in self.model:
            old = sorted(self.model)[-1]
            SnapshotCatalog(self.store).rename(old, name)
            self.model[name] = self.model.pop(old)

    @rule(names=st.lists(NAMES, max_size=3, unique=True))
    def remove_and_collect(self, names: list[str]) -> None:
        names = [name for name in names if name in self.model]
        collect(self.store)
        foretold = exclusive_bytes(self.store, names)
        if names:
            SnapshotCatalog(self.store).remove(names)
        before = disk_usage(self.store.layout.packs).disk_bytes
        report = collect(self.store)
        for name in names:
            del self.model[name]
        assert report.records == foretold.records
        assert report.stored_bytes == foretold.stored_bytes
        after = disk_usage(self.store.layout.packs).disk_bytes
        assert after <= before
        if foretold.stored_bytes > 20_000 and not self.model:
            assert after < before
        self.compare()

    @rule(names=st.lists(NAMES, max_size=2, unique=True))
    def remove(self, names: list[str]) -> None:
        names = [name for name in names if name in self.model]
        if names:
            SnapshotCatalog(self.store).remove(names)
            for name in names:
                del self.model[name]

    @rule(length=st.sampled_from(RUN_BYTES), seed=st.integers(10, 13))
    def give_up_halfway(self, length: int, seed: int) -> None:
        """Put what nothing will refer to, as an import that fails."""
        self.store.put(RecordKind.CHUNK, noise(seed, length)[:4096])
        with self.store.transaction():
            pass

    # --- what administrators do -------------------------------------------------------------------

    @rule()
    def reopen(self) -> None:
        self.store.put(RecordKind.CHUNK, noise("pending", 600))
        self.store.close()
        self.store = Store.open(self.path)

    @rule()
    def lose_the_index(self) -> None:
        self.store.close()
        shutil.rmtree(self.path / "index")
        report = reindex(self.path)
        self.store = Store.open(self.path)
        assert report.ok, report
        assert sorted(report.snapshots) == sorted(self.model)
        self.compare()

    @invariant()
    def the_store_is_sound(self) -> None:
        if hasattr(self, "store"):
            report = check(self.store)
            assert report.ok, report.problems
            assert report.lost_bytes == 0

    def compare(self) -> None:
        """The snapshots hold what the model says, and not a byte of it is damaged."""
        assert [i.name for i in SnapshotCatalog(self.store).list()] == sorted(self.model)
        for name, files in self.model.items():
            found = read_back(self.store, name)
            assert {path: data for path, (mode, data) in found.items() if stat.S_ISREG(mode)} == (
                files
            )
        assert scrub(self.store, from_disk=False).ok
        usage = store_usage(self.store)
        assert usage.logical_bytes == sum(
            len(data) for files in self.model.values() for data in files.values()
        )
        with self.store.reading() as txn:
            assert txn.count(Table.SNAPSHOTS) == len(self.model)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=25)
