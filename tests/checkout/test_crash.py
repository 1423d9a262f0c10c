"""A checkout, an update or a removal that a crash cuts off leaves no link without its file.

Method: each is done on a `FaultyDisk` that stops at its n-th changing call, for every n; then
nothing, all or a random part of what was not synced is lost (of the store: what was done in the
directory stays, so that any link made too early would be found), and at times the index as well.
Then gc runs, the worst that can happen to a link. Every file in the directory must be right, the
store sound; and doing it again must end it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dedupfs.errors import DedupfsError
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.namespace.checkouts import list_numbers, open_checkout, read_checkouts
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store, Table
from tests.checkout.places import SETTINGS, check_out, remove, sound, update
from tests.conftest import Scale
from tests.maintenance.samples import import_directory, lose_index, noise
from tests.transfer.test_crash import crash_in

pytestmark = pytest.mark.unmeasured

LOSSES = ["nothing", "all", "some"]
Work = Callable[[Store, Path], object]


def make_sources(top: Path) -> None:
    """Two states of a directory: `large` in a pack, `poured` and `mixed` in pieces."""
    for number, name in enumerate(("one", "two")):
        (top / name / "sub").mkdir(parents=True)
        (top / name / "large").write_bytes(noise(("large", number), 60_000))
        (top / name / "same").write_bytes(noise("same", 40_000))
        (top / name / "sub" / "small").write_bytes(noise(number, 100))
        mixed = noise("same", 40_000)[:20_000] + noise(number, 20_000)
        (top / name / "sub" / "mixed").write_bytes(mixed)


def make_it(store: Store, directory: Path) -> None:
    check_out(store, "one", directory, "symlink")


def move_it(store: Store, directory: Path) -> None:
    update(store, directory, "two")


def end_it(store: Store, directory: Path) -> None:
    remove(store, directory)
    collect(store)


def judge_files(directory: Path, sources: list[Path]) -> int:
    """Every name that is there is a file of one of the sources, whole; return how many links."""
    links = 0
    for found in directory.rglob("*") if directory.exists() else ():
        if found.name.startswith(".dedupfs-") or found.is_dir():
            continue
        links += found.is_symlink()
        wanted = [source / found.relative_to(directory) for source in sources]
        assert found.read_bytes() in [path.read_bytes() for path in wanted], found
    return links


@pytest.mark.parametrize("work", [make_it, move_it, end_it])
@pytest.mark.timeout(3600)
def test_a_stop_at_any_call_leaves_no_link_without_its_file(
    work: Work, memory_path: Path, scale: Scale
) -> None:
    make_sources(memory_path)
    sources = [memory_path / "one", memory_path / "two"]
    template, path = memory_path / "template", memory_path / "store"
    out = memory_path / "out"
    with Store.create(path, **SETTINGS) as store:
        for source in sources:
            import_directory(store, source, source.name)
        if work is not make_it:
            make_it(store, out)
        if work is not make_it:
            catalog = SnapshotCatalog(store)
            catalog.remove(["one"])  # the links alone hold it
    shutil.move(path, template)
    copy = memory_path / "copy"
    if out.exists():
        shutil.copytree(out, copy, symlinks=True)
        mark = os.getxattr(out, "user.dedupfs.checkout")
    crash_at, stopped, most_links = 0, True, 0
    while stopped:
        crash_at += 1
        for turn in range(scale(1, 2 * len(LOSSES))):
            loss = LOSSES[(crash_at + turn) % len(LOSSES)]
            loses_index = (crash_at + turn) // len(LOSSES) % 2 == 1
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(template, path)
            shutil.rmtree(out, ignore_errors=True)
            if copy.exists():
                shutil.copytree(copy, out, symlinks=True)
                os.setxattr(out, "user.dedupfs.checkout", mark)
            stopped = crash_in(work, path, out, crash_at, loss)
            try:
                links = judge(work, path, out, sources, stopped=stopped, loses_index=loses_index)
            except BaseException as exc:
                exc.add_note(f"crash_at={crash_at} loss={loss} loses_index={loses_index}")
                raise
            most_links = max(most_links, links)
    assert crash_at > 10
    assert most_links


def judge(
    work: Work,
    path: Path,
    out: Path,
    sources: list[Path],
    *,
    stopped: bool,
    loses_index: bool,
) -> int:
    if loses_index:
        lose_index(path)
        report = reindex(path)
        assert report.ok, report
    with Store.open(path) as store:
        sound(store)
        collect(store)
        sound(store)
        links = judge_files(out, sources)
        finish(work, store, out, stopped=stopped)
        judge_files(out, sources)
        sound(store)
        for number in list_numbers(store):
            with open_checkout(store, number) as registration:
                assert registration.manifest is not None
                assert registration.manifest.next is None
        if out.exists():
            remove(store, out)
        collect(store)
        SnapshotCatalog(store).remove([i.name for i in SnapshotCatalog(store).list()])
        collect(store)
        with store.reading() as txn:
            assert not txn.count(Table.RECORDS)
            assert not txn.count(Table.PINS)
        sound(store)
    return links


def finish(work: Work, store: Store, out: Path, *, stopped: bool) -> None:
    """Do again what was cut off, as its user would."""
    manifests, damaged = read_checkouts(store)
    assert not damaged
    if work is end_it:
        if manifests and out.exists():
            remove(store, out)
        for manifest in read_checkouts(store)[0]:
            with open_checkout(store, manifest.number) as registration:
                registration.drop()
        assert not list(out.rglob("*")) if out.exists() else True
        return
    if not manifests:
        assert work is make_it
        assert stopped
        shutil.rmtree(out, ignore_errors=True)
        work(store, out)
        return
    name = "one" if work is make_it else "two"
    try:
        update(store, out, name)
    except DedupfsError as exc:
        raise AssertionError(f"cannot be ended: {exc}") from exc
    wanted = sorted(p.relative_to(out).as_posix() for p in out.rglob("*"))
    assert wanted == ["large", "same", "sub", "sub/mixed", "sub/small"]
