"""Who holds what: the walk agrees with a model that follows each snapshot by itself, and gc."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedupfs.format.keys import decode_location, decode_pack_row, encode_pack_key
from dedupfs.format.manifest import Manifest, Shown
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.format.tree import references
from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.overview import HolderSpace, Overview, take_overview
from dedupfs.maintenance.sharing import Holder, Sharing, measure_sharing
from dedupfs.maintenance.usage import exclusive_bytes
from dedupfs.model import PackKind, RecordId, RecordKind
from dedupfs.namespace.checkouts import begin_checkout
from dedupfs.namespace.rows import decode_snapshot_row
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import View
from dedupfs.store import Store, Table
from tests.maintenance.samples import (
    SMALL,
    damage,
    import_directory,
    make_directory,
    noise,
    rows,
)


def holders(store: Store) -> list[Holder]:
    with store.reading() as txn:
        found = [decode_snapshot_row(row) for _, row in txn.scan(Table.SNAPSHOTS)]
    return [Holder("snapshot", info.name, (record_id,)) for info, record_id in found]


# --- the model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """For each snapshot, the records that it reaches, and what each of them takes."""

    reached: dict[str, frozenset[RecordId]]
    stored_bytes: dict[RecordId, int]

    def both(self, one: str, other: str) -> int:
        return sum(self.stored_bytes[found] for found in self.reached[one] & self.reached[other])

    def only_in(self, names: set[str]) -> int:
        kept = {found for name in self.reached.keys() - names for found in self.reached[name]}
        gone = {found for name in names for found in self.reached[name]}
        return sum(self.stored_bytes[found] for found in gone - kept)


def model_of(store: Store) -> Model:
    """Follow references from each snapshot by itself, with no sharing of any work."""
    stored: dict[RecordId, int] = {}
    children: dict[RecordId, set[RecordId]] = {}
    tables: dict[int, RecordId] = {}
    packs: dict[RecordId, int] = {}
    with store.reading() as txn:
        for row in rows(store):
            found = txn.get(Table.PACKS, encode_pack_key(row.location.pack))
            assert found is not None
            pack = decode_pack_row(found)
            header_bytes = HEADER_BYTES if pack.kind is PackKind.RECORDS else 0
            stored[row.record_id] = row.location.stored_bytes + header_bytes
            packs[row.record_id] = row.location.pack
            if pack.chunk_table is not None:
                tables[row.location.pack] = pack.chunk_table
            kind = row.location.kind
            leaf = kind in (RecordKind.CHUNK, RecordKind.CHUNK_TABLE)
            payload = b"" if leaf else store.get(row.record_id, kind)
            children[row.record_id] = set() if leaf else set(references(kind, payload))
    reached: dict[str, frozenset[RecordId]] = {}
    for holder in holders(store):
        seen: set[RecordId] = set()
        pending = list(holder.roots)
        while pending:
            record_id = pending.pop()
            if record_id not in seen:
                seen.add(record_id)
                pending += children[record_id]
        seen |= {tables[packs[found]] for found in seen if packs[found] in tables}
        reached[holder.name] = frozenset(seen)
    return Model(reached, stored)


def require_the_model(store: Store) -> Sharing:
    sharing = measure_sharing(store, holders(store))
    assert sharing.gap_count == 0, sharing.gaps
    model = model_of(store)
    names = [holder.name for holder in sharing.holders]
    matrix = sharing.matrix(range(len(names)))
    for one, row in zip(names, matrix, strict=True):
        assert row == [model.both(one, other) for other in names]
    for number, held in enumerate(sharing.reached()):
        assert held.stored_bytes == matrix[number][number]
        assert held.records == len(model.reached[names[number]])
        alone = sharing.only_in([number])
        assert alone.stored_bytes == model.only_in({names[number]})
        played = exclusive_bytes(store, [names[number]])
        assert (alone.stored_bytes, alone.records) == (played.stored_bytes, played.records)
    half = range(0, len(names), 2)
    assert sharing.only_in(half).stored_bytes == model.only_in({names[n] for n in half})
    everything = model.only_in(set(names))
    assert sum(held.stored_bytes for held in sharing.first_in()) == everything
    return sharing


# --- random stores --------------------------------------------------------------------------------

FILES = st.dictionaries(
    st.sampled_from(["a", "b", "sub/a", "sub/c", "sub/deep/d", "other/e"]),
    st.sampled_from(["small", "medium", "large", "holes", "empty"]),
    max_size=5,
)
CONTENTS = {
    "small": noise("small", 700),
    "medium": noise("medium", 20_000),
    "large": noise("medium", 20_000) + noise("large", 60_000),  # shares, and is a verbatim pack
    "holes": noise("holes", 3000) + bytes(40_000) + noise("small", 700),
    "empty": b"",
}


@settings(max_examples=12, deadline=None)
@given(st.lists(FILES, min_size=1, max_size=5), st.data())
def test_random_stores_are_shared_as_the_model_says_and_gc_frees_that(
    trees: list[dict[str, str]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch)
        with Store.create(top / "store", **SMALL) as store:
            for number, files in enumerate(trees):
                source = top / f"source{number}"
                source.mkdir()
                for path, content in files.items():
                    (source / path).parent.mkdir(parents=True, exist_ok=True)
                    (source / path).write_bytes(CONTENTS[content])
                import_directory(store, source, f"s{number}")
            SnapshotCatalog(store).tag("s0", {"a": "b"})  # leaves garbage that refers to its tree
        with Store.open(top / "store") as store:
            sharing = require_the_model(store)
            names = [holder.name for holder in sharing.holders]
            going = data.draw(st.lists(st.sampled_from(names), unique=True), "going")
            foretold = sharing.only_in(names.index(name) for name in going)
            collect(store)
            SnapshotCatalog(store).remove(going)
            report = collect(store)
            assert (report.stored_bytes, report.records) == (
                foretold.stored_bytes,
                foretold.records,
            )
            require_the_model(store)
            assert check(store).ok


# --- single stories -------------------------------------------------------------------------------


@pytest.fixture
def three(filled: Store, tmp_path: Path) -> Iterator[Store]:
    """``first``, a changed copy of it, and something else."""
    second = make_directory(tmp_path / "second")
    (second / "large").write_bytes(noise("another", 90_000))
    import_directory(filled, second, "second")
    import_directory(filled, make_directory(tmp_path / "third", seed=3), "third")
    yield filled
    assert check(filled).ok


def test_an_empty_store_holds_nothing(store: Store) -> None:
    sharing = measure_sharing(store, [])
    assert (sharing.by_mask, sharing.matrix([]), sharing.reached()) == ({}, [], [])
    overview = take_overview(store)
    assert (overview.spaces, overview.growth, overview.prunes) == ([], [], [])
    assert overview.largest.files == []


def test_what_is_new_adds_up_to_all_that_is_stored(three: Store) -> None:
    require_the_model(three)
    overview = take_overview(three)
    usage = overview.usage
    assert usage.garbage_bytes == 0
    assert overview.growth[-1].stored_bytes == usage.stored_bytes
    assert overview.growth[-1].logical_bytes == usage.logical_bytes
    assert [point.name for point in overview.growth] == ["first", "second", "third"]


def test_progress_reaches_its_total_and_never_falls(three: Store) -> None:
    heard: list[tuple[int, int]] = []
    measure_sharing(three, holders(three), lambda done, total: heard.append((done, total)))
    assert heard == sorted(heard)
    done, total = heard[-1]
    assert 0 < done <= total == len(rows(three))


def test_a_prune_frees_what_the_overview_foretold(three: Store) -> None:
    collect(three)
    prune = next(it for it in take_overview(three).prunes if it.rule == "--keep-last 1")
    assert (prune.kept, prune.removed) == (1, ("first", "second"))
    for it in take_overview(three).prunes:
        assert it.frees_bytes == exclusive_bytes(three, it.removed).disk_bytes
    SnapshotCatalog(three).remove(prune.removed)
    assert collect(three).stored_bytes == prune.freed_bytes


def test_what_the_disk_gets_back_is_what_du_tells(three: Store) -> None:
    View.bring_back(three, "work", snapshot="third").close()
    for space in take_overview(three).spaces:
        names = ([space.name], []) if space.kind == "snapshot" else ([], [space.name])
        assert space.frees_bytes == exclusive_bytes(three, *names).disk_bytes


def test_beyond_what_there_is_time_for_nothing_is_guessed(
    three: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dedupfs.maintenance.playing.FORECAST_RECORDS_MAX", 1)
    overview = take_overview(three)
    assert {prune.frees_bytes for prune in overview.prunes} == {None}
    assert all(prune.freed_bytes for prune in overview.prunes)


def test_a_pinned_snapshot_stays_in_each_prune(three: Store) -> None:
    SnapshotCatalog(three).pin("first", True)
    assert all("first" not in prune.removed for prune in take_overview(three).prunes)


def test_a_view_holds_what_it_was_made_from(three: Store) -> None:
    View.bring_back(three, "work", snapshot="third").close()
    before = {space.name: space for space in take_overview(three).spaces}
    assert before["work"].kind == "view"
    assert before["work"].base == "third"
    assert before["third"].exclusive_bytes < before["third"].reached_bytes / 10
    SnapshotCatalog(three).remove(["third", "first", "second"])
    collect(three)
    (alone,) = take_overview(three).spaces
    assert alone.logical_bytes == before["third"].logical_bytes
    assert alone.exclusive_bytes == alone.reached_bytes == before["work"].reached_bytes


def test_what_a_running_command_holds_is_nobodys_exclusively(three: Store) -> None:
    chunk = three.digest(RecordKind.CHUNK, noise((3, "small"), 700))
    before = _space(take_overview(three), "third").exclusive_bytes
    owner = b"p" + b"0123456789abcdef"
    with three.transaction() as txn:
        txn.pin(owner, chunk)
    assert _space(take_overview(three), "third").exclusive_bytes == before  # it is dead
    lock = three.disk.open(three.layout.owner_lock(owner), create=True)
    assert three.disk.lock(lock)
    size = decode_location(three.db.record_row(chunk) or b"")[0].stored_bytes + HEADER_BYTES
    overview = take_overview(three)
    assert _space(overview, "third").exclusive_bytes == before - size
    assert {space.kind for space in overview.spaces} == {"snapshot"}
    lock.close()
    with three.transaction() as txn:
        txn.unpin(owner, chunk)


def test_a_checkout_keeps_what_it_shows_when_the_snapshot_has_gone(three: Store) -> None:
    info = SnapshotCatalog(three).get("third")
    with begin_checkout(three) as registration:
        registration.hold([info.root])
        shown = Shown(info.name, info.sequence, b"", info.root, "symlink")
        manifest = Manifest(registration.number, "checkout", "token", b"/somewhere", 7, shown)
        registration.save(manifest)
    collect(three)
    before = take_overview(three)
    (checkout,) = before.checkouts
    assert (checkout.directory, checkout.snapshot, checkout.link) == (
        b"/somewhere",
        "third",
        "symlink",
    )
    assert checkout.exclusive_bytes == 0
    SnapshotCatalog(three).remove(["third"])
    assert collect(three).stored_bytes == _space(before, "third").exclusive_bytes
    (alone,) = take_overview(three).checkouts
    assert alone.reached_bytes == checkout.reached_bytes
    assert alone.exclusive_bytes > checkout.reached_bytes / 2


def _space(overview: Overview, name: str) -> HolderSpace:
    (found,) = [space for space in overview.spaces if space.name == name]
    return found


@pytest.mark.parametrize("kind", [RecordKind.TREE, RecordKind.RECIPE_PAGE])
def test_what_cannot_be_read_is_a_gap_that_names_who_is_hit(
    filled: Store, kind: RecordKind
) -> None:
    SnapshotCatalog(filled).clone("first", "copy")
    row = rows(filled, kind)[0]
    damage(filled, row)
    path = filled.path
    filled.close()
    with Store.open(path) as store:
        overview = take_overview(store)
        assert overview.gap_count == 1
        (gap,) = overview.gaps
        assert row.record_id.hex() in gap.what
        assert sorted(gap.holders) == ["snapshot copy", "snapshot first"]
        assert len(overview.spaces) == 2


def test_a_lost_record_is_a_gap(filled: Store, source: Path) -> None:
    lost = filled.digest(RecordKind.CHUNK, (source / "sub" / "small").read_bytes())
    with filled.db.writing() as txn:
        assert txn.delete(Table.RECORDS, lost)
    (gap,) = take_overview(filled).gaps
    assert gap.what == f"record {lost.hex()} is not in the store"
    assert gap.holders == ("snapshot first",)


def test_the_largest_files_and_directories_are_those_of_the_source(
    filled: Store, source: Path
) -> None:
    overview = take_overview(filled)
    contents = {path.read_bytes(): path for path in source.rglob("*") if path.is_file()}
    sizes = sorted((len(content) for content in contents if content), reverse=True)
    found = overview.largest.files
    assert [file.logical_bytes for file in found] == sizes
    for file in found:
        assert (source / file.path.decode()).stat().st_size == file.logical_bytes
    assert overview.largest.is_complete
    assert [directory.path for directory in overview.directories] == [b"", b"sub"]


def test_of_many_snapshots_the_matrix_compares_the_newest(filled: Store) -> None:
    catalog = SnapshotCatalog(filled)
    for number in range(70):
        catalog.clone("first", f"copy-{number}")
    matrix = take_overview(filled).matrix
    assert len(matrix.names) == len(matrix.rows) == 60
    assert matrix.names[-1] == "copy-69"
    assert matrix.left_off == 11
