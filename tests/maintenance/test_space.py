"""What du foretells is what gc gives back, to the block, whatever the store has been through.

Method: random histories (tests/maintenance/spaces.py). After each step every snapshot, every view
and some sets of them are asked for. Records are compared with a plain walk over all that each
holds; blocks with a copy of the store in which the set is removed and gc is run for real. The copy
must be sound then.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from dedupfs.format.keys import decode_pack_row, encode_pack_key
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.format.tree import (
    decode_extents,
    decode_recipe,
    decode_snapshot,
    decode_tree,
    decode_tree_page,
    decode_view_root,
    entry_references,
    references,
)
from dedupfs.maintenance.check import check
from dedupfs.maintenance.forecast import Forecast
from dedupfs.maintenance.gc import GcOptions, collect
from dedupfs.maintenance.scrub import scrub
from dedupfs.model import (
    HOLE,
    ID_BYTES,
    Location,
    PackKind,
    RecordId,
    RecordKind,
    TreeEntry,
)
from dedupfs.namespace.rows import decode_snapshot_row, decode_view_row, view_owner_key
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.views import EPHEMERAL_PREFIX, VIEWS_DIRECTORY, remove_view
from dedupfs.store import ReadTxn, Store, Table
from dedupfs.store.inventory import indexed_packs, indexed_records, pack_files, pins
from tests.conftest import Scale
from tests.maintenance.spaces import History, copy_of

pytestmark = pytest.mark.unmeasured

BLOCK_BYTES = 4096
Holder = tuple[str, str]
"""What it is, snapshot or view, and its name."""


# --- the specification: who reaches what ----------------------------------------------------------


@dataclass
class Model:
    """All records of a store and who holds them, by walking over everything."""

    locations: dict[RecordId, Location] = field(default_factory=dict)
    payloads: dict[RecordId, bytes] = field(default_factory=dict)
    roots: dict[Holder, list[RecordId]] = field(default_factory=dict)
    tops: dict[Holder, RecordId] = field(default_factory=dict)
    tables: dict[int, RecordId] = field(default_factory=dict)
    verbatim: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, store: Store) -> Model:
        model = cls()
        with store.reading() as txn:
            for record in indexed_records(txn):
                model.locations[record.record_id] = record.location
            for _, row in txn.scan(Table.SNAPSHOTS):
                info, record_id = decode_snapshot_row(row)
                model.tops["snapshot", info.name] = record_id
                model.roots["snapshot", info.name] = [record_id]
            model._add_views(txn)
            for pack, pack_row in indexed_packs(txn):
                if pack_row.kind is PackKind.VERBATIM:
                    model.verbatim.add(pack)
                if pack_row.chunk_table is not None:
                    model.tables[pack] = pack_row.chunk_table
        for record_id, location in model.locations.items():
            if location.kind is not RecordKind.CHUNK:
                model.payloads[record_id] = store.get(record_id, location.kind)
        return model

    def _add_views(self, txn: ReadTxn) -> None:
        pinned: dict[bytes, list[RecordId]] = {}
        for owner, record_id, _count in pins(txn):
            pinned.setdefault(owner, []).append(record_id)
        for _, row in txn.scan(Table.VIEWS):
            view = decode_view_row(row)
            if not view.name.startswith(EPHEMERAL_PREFIX):  # whose process is dead: garbage
                held = pinned.get(view_owner_key(view.view_id), [])
                self.tops["view", view.name] = view.root_id
                self.roots["view", view.name] = [view.root_id, *held]

    def reached(self, holders: Iterable[Holder]) -> set[RecordId]:
        """Return every record that something of ``holders`` needs, chunk tables included."""
        found: set[RecordId] = set()
        pending = [record_id for holder in holders for record_id in self.roots[holder]]
        while pending:
            record_id = pending.pop()
            if record_id in found:
                continue
            found.add(record_id)
            location = self.locations[record_id]
            if location.kind is not RecordKind.CHUNK:
                pending += references(location.kind, self.payloads[record_id])
            if location.pack in self.tables:
                pending.append(self.tables[location.pack])
        return found

    def stored_bytes(self, record_id: RecordId) -> int:
        location = self.locations[record_id]
        return location.stored_bytes + HEADER_BYTES * (location.pack not in self.verbatim)

    # --- as it reads ------------------------------------------------------------------------------

    def shared_bytes(self, record_id: RecordId, held: set[RecordId], *, inside: bool) -> int:
        """Add up what is below a record in each place where it is seen.

        Only what ``held`` has, unless that is where we are ``inside`` of.
        """
        inside = inside or record_id in held
        kind, payload = self.locations[record_id].kind, self.payloads.get(record_id, b"")
        below = partial(self.shared_bytes, held=held, inside=inside)
        if kind is RecordKind.CHUNK:
            return self.locations[record_id].logical_bytes if inside else 0
        if kind is RecordKind.RECIPE:
            return sum(below(page_id) for page_id, _ in decode_recipe(payload))
        if kind is RecordKind.RECIPE_PAGE:
            return self._extents_bytes(payload, held, inside)
        if kind is RecordKind.TREE:
            tree = decode_tree(payload)
            pages = sum(below(page.page_id) for page in tree.pages)
            return pages + sum(self._entry_bytes(entry, held, inside) for entry in tree.entries)
        if kind is RecordKind.TREE_PAGE:
            entries = decode_tree_page(payload)
            return sum(self._entry_bytes(entry, held, inside) for entry in entries)
        if kind is RecordKind.SNAPSHOT:
            return self._entry_bytes(decode_snapshot(payload).root, held, inside)
        assert kind is RecordKind.VIEW_ROOT
        return self._entry_bytes(decode_view_root(payload).root, held, inside)

    def _entry_bytes(self, entry: TreeEntry, held: set[RecordId], inside: bool) -> int:
        if entry.is_file and len(entry.content) != ID_BYTES:
            return self._extents_bytes(entry.content, held, inside)
        if entry.is_file or entry.is_directory:
            ids = [RecordId(entry.content)] if entry.is_file else entry_references(entry)
            return sum(self.shared_bytes(found, held, inside=inside) for found in ids)
        return 0

    def _extents_bytes(self, packed: bytes, held: set[RecordId], inside: bool) -> int:
        return sum(
            extent.length
            for extent in decode_extents(packed)
            if inside or (extent.chunk_id != HOLE and extent.chunk_id in held)
        )


# --- what is really there -------------------------------------------------------------------------


def committed_bytes(store: Store) -> dict[str, int]:
    """Return how far each record pack is committed; what comes behind is new or a crash's."""
    with store.reading() as txn:
        return {
            str(path.relative_to(store.path)): decode_pack_row(row).committed_bytes
            for pack, kind, path in pack_files(store)
            if kind is PackKind.RECORDS
            and (row := txn.get(Table.PACKS, encode_pack_key(pack))) is not None
        }


def data_bytes(path: Path, limit: int) -> int:
    """Return how much of a file is no hole, up to ``limit``."""
    found = position = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        limit = min(limit, -(-size // BLOCK_BYTES) * BLOCK_BYTES)
        while position < limit:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            position = -(-position // BLOCK_BYTES) * BLOCK_BYTES
            found += max(0, min(position, limit) - start)
    return found


def files_of(path: Path) -> dict[str, tuple[tuple[int, int], int]]:
    """Return the inode and the blocks of each file of packs and views."""
    return {
        str(file.relative_to(path)): ((status.st_ino, status.st_nlink), status.st_blocks * 512)
        for top in (path / "packs", path / VIEWS_DIRECTORY)
        for file in top.rglob("*")
        if file.is_file()
        for status in [file.stat()]
    }


def settled_blocks(path: Path) -> dict[str, int]:
    """Return the blocks of each file, once no block is still to be given out or moved."""
    for name in files_of(path):
        file = os.open(path / name, os.O_RDONLY)
        os.fsync(file)
        os.close(file)
    return {name: blocks for name, (_inode, blocks) in files_of(path).items()}


def given_back(
    path: Path, remove: Iterable[Holder], original: Mapping[str, int] | None = None
) -> int:
    """Remove holders from the store, collect, and return what the file system has back.

    ``original``: the blocks of the files that this store was copied from, since a copy in fewer
    pieces needs a smaller map of them.

    Of files that stay: the data that became holes, but for what lies behind the last whole block
    that was committed. Of those that went: their blocks, unless nothing was ever committed to them.
    """
    with Store.open(path) as store:
        committed = committed_bytes(store)
    limits = {name: stop // BLOCK_BYTES * BLOCK_BYTES for name, stop in committed.items()}
    before = files_of(path)
    data = {name: data_bytes(path / name, limits.get(name, 1 << 62)) for name in before}
    with Store.open(path) as store:
        snapshots = [name for kind, name in remove if kind == "snapshot"]
        if snapshots:
            SnapshotCatalog(store).remove(snapshots)
        for kind, name in remove:
            if kind == "view":
                remove_view(store, name)
        collect(store, options=GcOptions(live_share=0))
        problems = check(store).problems
        assert not problems, problems
        assert scrub(store, from_disk=False).ok
    after = files_of(path)
    back = 0
    went: dict[int, int] = {}
    for name, ((inode, _links), blocks) in before.items():
        if name in after:
            back += data[name] - data_bytes(path / name, limits.get(name, 1 << 62))
        elif committed.get(name) != 0:
            went[inode] = original[name] if original is not None else blocks
    stays = {inode for (inode, _links), _blocks in after.values()}
    return back + sum(blocks for inode, blocks in went.items() if inode not in stays)


# --- the test -------------------------------------------------------------------------------------


def sets_of(holders: list[Holder], rng: random.Random) -> list[list[Holder]]:
    """Return each alone, some together, none, and all."""
    alone = [[holder] for holder in holders]
    some = [rng.sample(holders, rng.randint(1, len(holders))) for _ in range(3) if holders]
    return [*alone, *some, [], holders]


def compare(history: History, rng: random.Random, copies: int, top: Path) -> int:
    """Compare what is foretold with the model and with what gc does; return how often."""
    original = settled_blocks(history.path)
    with Store.open(history.path) as store:
        model = Model.of(store)
        holders = sorted(model.roots)
        sets = sets_of(holders, rng)
        with store.reading() as txn:
            forecast = Forecast(store, txn)
            garbage = forecast.garbage
            foretold = [
                forecast.exclusive(
                    [name for kind, name in chosen if kind == "snapshot"],
                    [name for kind, name in chosen if kind == "view"],
                )
                for chosen in sets
            ]
            assert not forecast.damaged
    everything = model.reached(holders)
    for chosen, told in zip(sets, foretold, strict=True):
        held = model.reached(holder for holder in holders if holder not in chosen)
        freed = everything - held
        assert told.records == len(freed), chosen
        assert told.stored_bytes == sum(map(model.stored_bytes, freed)), chosen
        chunks = [found for found in freed if model.locations[found].kind is RecordKind.CHUNK]
        logical = sum(model.locations[found].logical_bytes for found in chunks)
        assert told.logical_bytes == logical, chosen
        shared = [model.shared_bytes(model.tops[one], held, inside=False) for one in set(chosen)]
        assert told.shared_bytes == sum(shared), chosen
        assert not told.problems
    for index in rng.sample(range(len(sets)), min(copies, len(sets))):
        copy = copy_of(history.path, top / "copy")
        back = given_back(copy, sets[index], original)
        assert back == garbage.disk_bytes + foretold[index].disk_bytes, sets[index]
    return min(copies, len(sets))


def run(top: Path, seed: int, steps: int, copies: int) -> Counter[str]:
    """Run one history and return what was done in it."""
    history = History(top, seed)
    done: Counter[str] = Counter()
    for number in range(steps):
        done[history.step()] += 1
        try:
            done["compared"] += compare(history, random.Random(seed + number), copies, top)
        except AssertionError as exc:
            raise AssertionError(f"{seed=}, step {number}, {history.steps}: {exc}") from exc
    return done


def fresh_seed() -> int:
    return 1 if os.environ.get("CI") == "true" else random.SystemRandom().randrange(1 << 32)


def test_what_is_foretold_is_what_gc_gives_back(memory_path: Path, scale: Scale) -> None:
    seed = fresh_seed()
    done: Counter[str] = Counter()
    for number in range(scale(2, 150)):
        top = memory_path / str(number)
        done += run(top, seed + number, scale(12, 40), 2)
        shutil.rmtree(top)
    assert done["compared"] == scale(48, 12_000)


def test_the_same_on_the_disk(tmp_path: Path, scale: Scale) -> None:
    """ext4, XFS and others keep maps of holes, in blocks that the rest of st_blocks are not."""
    done = run(tmp_path / "history", fresh_seed(), scale(8, 400), 2)
    assert done["compared"] == scale(16, 800)
