"""Imports: what is read again, what happens to files that move under the reader, what is refused.

Files are changed in the middle of an import by its own progress callback, so nothing waits.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dedupfs.errors import ExistsError, SourceError, UsageError
from dedupfs.maintenance.gc import collect
from dedupfs.model import RecordId, RecordKind, TreeEntry
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store, Table
from dedupfs.transfer.export import export_tree
from dedupfs.transfer.ingest import IngestOptions, ingest_tree
from dedupfs.transfer.report import IngestReport, Progress
from tests.transfer.trees import IS_ROOT, LARGE_BYTES, TRUSTING, WARM, differences, noise

ROOT = Path(__file__).parents[2]


def root_of(report: IngestReport) -> TreeEntry:
    assert report.snapshot is not None
    return report.snapshot.root


def content(store: Store, report: IngestReport, path: bytes) -> bytes:
    from dedupfs.namespace.contents import load_recipe

    entry = TreeReader(store).walk_path(root_of(report), path)
    recipe = load_recipe(store, entry.content)
    return store.read(recipe.cut(0, recipe.size))


def once(
    when: Callable[[Progress], bool], then: Callable[[], object]
) -> Callable[[Progress], None]:
    """Call ``then`` the first time that ``when`` holds for a progress."""
    done: list[bool] = []

    def hear(progress: Progress) -> None:
        if not done and when(progress):
            done.append(True)
            then()

    return hear


def collect_elsewhere(store: Store) -> None:
    """Run gc as another process would at this moment."""
    program = (
        "import sys; from pathlib import Path; from dedupfs.store import Store;"
        "from dedupfs.maintenance.gc import collect; collect(Store.open(Path(sys.argv[1])))"
    )
    subprocess.run([sys.executable, "-c", program, store.path], check=True, cwd=ROOT)


def test_ten_imports_read_only_what_changed(store: Store, source: Path, tmp_path: Path) -> None:
    for number in range(30):
        directory = source / f"d{number % 5}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{number}").write_bytes(noise(number, 10_000))
    os.link(source / "d0" / "f0", source / "d1" / "linked")
    (source / "pointer").symlink_to("d0/f0")
    for day in range(10):
        (source / "d2" / "log").write_bytes(noise(100 + day, 5_000))
        report = ingest_tree(store, source, f"day{day}", options=TRUSTING)
        assert not report.problems
        assert report.bytes_read == (30 * 10_000 + 5_000 if day == 0 else 5_000)
        export_tree(store, root_of(report), tmp_path / f"out{day}")
        assert differences(source, tmp_path / f"out{day}") == []
    assert len(SnapshotCatalog(store).list()) == 10


def test_a_warm_file_is_read_again(store: Store, source: Path) -> None:
    assert IngestOptions().racy_ns >= 10**9  # the coarsest times of file systems in use but for FAT
    (source / "a").write_bytes(b"one")
    ingest_tree(store, source, "first", options=WARM)
    assert ingest_tree(store, source, "again").bytes_read == 3


def test_a_change_that_keeps_size_and_mtime_is_seen(store: Store, source: Path) -> None:
    (source / "a").write_bytes(b"one")
    os.utime(source / "a", ns=(5, 5))
    ingest_tree(store, source, "first", options=TRUSTING)
    (source / "a").write_bytes(b"two")
    os.utime(source / "a", ns=(5, 5))
    report = ingest_tree(store, source, "again", options=TRUSTING)
    assert content(store, report, b"a") == b"two"


def test_reread_trusts_nothing(store: Store, source: Path) -> None:
    (source / "a").write_bytes(b"one")
    ingest_tree(store, source, "first", options=TRUSTING)
    assert ingest_tree(store, source, "again", options=IngestOptions(reread=True)).bytes_read == 3


def test_an_import_after_everything_was_freed_reads_everything(store: Store, source: Path) -> None:
    (source / "sub").mkdir()
    (source / "sub" / "a").write_bytes(noise(1, 50_000))
    ingest_tree(store, source, "first", options=TRUSTING)
    SnapshotCatalog(store).remove(["first"])
    collect(store)
    report = ingest_tree(store, source, "again", options=TRUSTING)
    assert report.bytes_read == 50_000
    assert content(store, report, b"sub/a") == noise(1, 50_000)


def test_rows_of_directories_that_went_are_forgotten(store: Store, source: Path) -> None:
    def rows() -> int:
        with store.reading() as txn:
            return txn.count(Table.SOURCES)

    (source / "keep").mkdir()
    (source / "keep" / "a").write_bytes(b"a")
    (source / "gone" / "below").mkdir(parents=True)
    (source / "gone" / "below" / "b").write_bytes(b"b")
    ingest_tree(store, source, "first", options=TRUSTING)
    assert rows() == 4 + 1  # and one that says what to compare directories beside it with
    (source / "gone" / "below" / "b").unlink()
    (source / "gone" / "below").rmdir()
    (source / "gone").rmdir()
    ingest_tree(store, source, "again", options=TRUSTING)
    assert rows() == 2 + 1


def test_link_ids_stay_when_other_links_come(store: Store, source: Path) -> None:
    for name in ("m1", "m2"):
        (source / name).write_bytes(name.encode())
        os.link(source / name, source / f"{name}.again")
    first = ingest_tree(store, source, "first", options=TRUSTING)
    (source / "a").write_bytes(b"in front of them all")
    os.link(source / "a", source / "b")
    again = ingest_tree(store, source, "again", options=TRUSTING)
    reader = TreeReader(store)
    for linked in (b"m1", b"m2", b"m2.again"):
        before = reader.find(RecordId(root_of(first).content[:16]), linked)
        after = reader.find(RecordId(root_of(again).content[:16]), linked)
        assert before is not None
        assert after is not None
        assert before.content == after.content
    assert content(store, again, b"b") == b"in front of them all"


def test_a_file_whose_other_names_lie_outside_is_plain(store: Store, source: Path) -> None:
    (source / "inside").write_bytes(b"x")
    os.link(source / "inside", source.parent / "outside")
    report = ingest_tree(store, source, "one")
    entry = TreeReader(store).walk_path(root_of(report), b"inside")
    assert entry.is_file
    assert not root_of(report).has_links


def test_a_file_that_changes_once_is_read_twice(store: Store, source: Path) -> None:
    large = source / "large"
    large.write_bytes(noise(1, 4 * LARGE_BYTES))
    changed = noise(2, 5 * LARGE_BYTES)
    change = once(lambda progress: progress.bytes_done > 0, lambda: large.write_bytes(changed))
    report = ingest_tree(store, source, "one", progress=change)
    assert not report.problems
    assert content(store, report, b"large") == changed


def test_a_file_that_never_rests_is_kept_and_reported(store: Store, source: Path) -> None:
    log = source / "log"
    log.write_bytes(b"x" * 100)

    def grow(_progress: Progress) -> None:
        with log.open("ab") as file:
            file.write(b"y")

    report = ingest_tree(store, source, "one", progress=grow)
    assert [problem.path for problem in report.problems] == [b"log"]
    assert "changed" in report.problems[0].message
    assert content(store, report, b"log").startswith(b"x" * 100)


def test_files_that_vanish_are_reported_and_the_rest_is_there(store: Store, source: Path) -> None:
    for number in range(200):  # more than are opened ahead
        (source / f"{number:03}").write_bytes(b"%d" % number)
    (source / "zz").mkdir()

    def vanish() -> None:
        (source / "199").unlink()
        (source / "zz").rmdir()

    report = ingest_tree(
        store, source, "one", progress=once(lambda progress: progress.files_done > 0, vanish)
    )
    assert [problem.path for problem in report.problems] == [b"199", b"zz"]
    assert report.files == 199
    assert content(store, report, b"198") == b"198"


def test_a_file_that_becomes_a_symlink_is_not_followed(store: Store, source: Path) -> None:
    secret = source.parent / "secret"
    secret.write_bytes(b"secret")
    for number in range(200):
        (source / f"{number:03}").write_bytes(b"%d" % number)
    (source / "zdir").mkdir()
    (source / "zdir" / "inner").write_bytes(b"inner")

    def swap() -> None:
        (source / "199").unlink()
        (source / "199").symlink_to(secret)
        (source / "zdir" / "inner").unlink()
        (source / "zdir").rmdir()
        (source / "zdir").symlink_to(source.parent)

    report = ingest_tree(
        store, source, "one", progress=once(lambda progress: progress.files_done > 0, swap)
    )
    names = [entry.name for entry in TreeReader(store).entries(RecordId(root_of(report).content))]
    assert b"199" in names
    entry = TreeReader(store).walk_path(root_of(report), b"199")
    assert entry.is_symlink
    assert TreeReader(store).walk_path(root_of(report), b"zdir").is_symlink


def test_pending_records_are_committed_in_between(store: Store, source: Path) -> None:
    for number in range(20):
        (source / f"d{number}").mkdir()
        (source / f"d{number}" / "a").write_bytes(noise(number, 20_000))
    (source / "text").write_bytes(b"".join(b"line %d\n" % n for n in range(60_000)))
    options = IngestOptions(pending_bytes_max=30_000)

    sweep = once(lambda progress: progress.files_done == 15, lambda: collect_elsewhere(store))
    report = ingest_tree(store, source, "one", options=options, progress=sweep)
    assert not report.problems
    assert content(store, report, b"d7/a") == noise(7, 20_000)
    with store.reading() as txn:
        assert not list(txn.scan(Table.PINS, prefix=store.owner))


def test_an_interrupted_import_leaves_nothing_visible(store: Store, source: Path) -> None:
    for number in range(5):
        (source / f"{number}").write_bytes(noise(number, 3 * LARGE_BYTES))

    def interrupt(progress: Progress) -> None:
        if progress.bytes_done > 7 * LARGE_BYTES:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest_tree(
            store,
            source,
            "one",
            progress=interrupt,
            options=IngestOptions(pending_bytes_max=LARGE_BYTES),
        )
    assert not SnapshotCatalog(store).list()
    assert not list((store.path / "run").glob("import-*"))
    with store.reading() as txn:
        assert not list(txn.scan(Table.PINS, prefix=store.owner))
    assert ingest_tree(store, source, "one").files == 5


def test_a_chunk_that_gc_takes_away_meanwhile_is_put_again(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(1, 20_000)
    (source / "a").write_bytes(data)
    ingest_tree(store, source, "first")
    SnapshotCatalog(store).remove(["first"])
    swept: list[bool] = []
    put = store.put

    def put_then_sweep(
        kind: RecordKind, payload: bytes | memoryview, *, digest: RecordId | None = None
    ) -> RecordId:
        record_id = put(kind, payload, digest=digest)
        if kind is RecordKind.TREE and not swept:
            swept.append(True)
            collect_elsewhere(store)
        return record_id

    monkeypatch.setattr(store, "put", put_then_sweep)
    report = ingest_tree(store, source, "again")
    assert swept
    assert content(store, report, b"a") == data


def test_taken_and_bad_names_are_refused_before_reading(store: Store, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    (tmp_path / "empty").mkdir()
    ingest_tree(store, tmp_path / "empty", "taken")
    with pytest.raises(ExistsError):
        ingest_tree(store, missing, "taken")
    with pytest.raises(UsageError):
        ingest_tree(store, missing, "no/name")
    with pytest.raises(SourceError, match="missing"):
        ingest_tree(store, missing, "fine")


def test_a_store_does_not_swallow_itself(store: Store, tmp_path: Path) -> None:
    for directory in (store.path, store.path / "packs", tmp_path, Path("/")):
        with pytest.raises(UsageError, match="store"):
            ingest_tree(store, directory, "one")
    assert not SnapshotCatalog(store).list()


UNREADABLE = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.transfer.trees import make_store
from dedupfs.transfer.ingest import ingest_tree
os.setgroups([]); os.setgid(65534); os.setuid(65534)
with make_store(Path(sys.argv[1]) / "store") as store:
    report = ingest_tree(store, Path(sys.argv[2]), "one")
    print(report.files, *sorted(str(problem) for problem in report.problems), sep="\\n")
"""


@pytest.mark.root
def test_what_an_ordinary_user_cannot_read_is_left_out(tmp_path: Path, source: Path) -> None:
    """Run as nobody, in a process of its own since root could read everything."""
    assert IS_ROOT
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o777)
    for directory in [tmp_path, *tmp_path.parents]:
        if directory.stat().st_uid == 0 and str(directory).startswith("/tmp/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    (source / "open").write_bytes(b"1")
    (source / "secret").write_bytes(b"2")
    (source / "secret").chmod(0o600)
    (source / "closed").mkdir(mode=0o700)
    (source / "closed" / "inner").write_bytes(b"3")
    program = UNREADABLE.format(root=str(ROOT))
    command = [sys.executable, "-c", program, str(home), str(source)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.stdout.splitlines() == [
        "1",
        "closed: its content is missing: Permission denied",
        "secret: left out: Permission denied",
    ], result.stderr
