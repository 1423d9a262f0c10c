"""Dedupe, then undo, is nothing at all: over any small tree, content, attributes, links and times.

Between the two every byte is readable at its path, and gc frees nothing of it; afterwards gc leaves
an empty store.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dedupfs.checkout.dedupe.run import dedupe
from dedupfs.checkout.dedupe.undo import undo
from dedupfs.errors import NotFoundError
from dedupfs.maintenance.gc import collect
from dedupfs.store import Store, Table
from tests.checkout.deduped import contents_of, options, require_sound, seen_in
from tests.conftest import Scale
from tests.transfer.trees import make_store, noise

pytestmark = pytest.mark.unmeasured

SIZE = 20_000
DIRECTORIES = ("", "a", "a/deep", "b")


@dataclass(frozen=True)
class File:
    """A file of a tree. ``link_to``: it is one more name of that earlier file, if there is one."""

    directory: str
    content: int
    tail: int
    hole: bool
    mode: int
    mtime_ns: int
    xattr: bytes | None
    link_to: int | None


FILES = st.builds(
    File,
    directory=st.sampled_from(DIRECTORIES),
    content=st.integers(0, 2),
    tail=st.sampled_from([0, 1, 4096]),
    hole=st.booleans(),
    mode=st.sampled_from([0o644, 0o644, 0o600, 0o444, 0o755]),
    mtime_ns=st.integers(10**18, 10**18 + 2),
    xattr=st.sampled_from([None, None, b"", b"value"]),
    link_to=st.none() | st.integers(0, 5),
)


def make_tree(top: Path, files: list[File]) -> None:
    for directory in DIRECTORIES:
        (top / directory).mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        path = top / file.directory / f"file-{number}"
        if file.link_to is not None and file.link_to < number:
            (original,) = top.rglob(f"file-{file.link_to}")
            os.link(original, path)
            continue
        with path.open("wb") as out:
            out.write(noise(file.content, SIZE))
            if file.hole:
                out.seek(10 * SIZE)
            out.write(b"x" * file.tail)
        if file.xattr is not None:
            os.setxattr(path, "user.kept", file.xattr)
        path.chmod(file.mode)
        os.utime(path, ns=(file.mtime_ns, file.mtime_ns))
    for directory in DIRECTORIES:
        os.utime(top / directory, ns=(10**18, 10**18 + len(directory)))


def compare(store: Store, top: Path, link: str, *, ignore: bool) -> None:
    before, seen = contents_of(top), seen_in(top)
    report = dedupe(store, top, options(link, ignore_attributes=ignore))
    assert contents_of(top) == before
    if link == "reflink":
        assert seen_in(top) == seen
    collect(store)
    assert contents_of(top) == before
    require_sound(store)
    if report.snapshot:
        assert dedupe(store, top, options(link, ignore_attributes=ignore)).replaced == 0
        assert undo(store, top).is_complete
    else:
        with pytest.raises(NotFoundError):
            undo(store, top)
    assert seen_in(top) == seen
    collect(store)
    require_sound(store)
    with store.reading() as txn:
        assert not txn.count(Table.RECORDS)
        assert not txn.count(Table.PINS)


def run_examples(base: Path, link: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(files=st.lists(FILES, min_size=2, max_size=8), ignore=st.booleans())
    def check(files: list[File], ignore: bool) -> None:
        top = Path(tempfile.mkdtemp(dir=base))
        try:
            (top / "tree").mkdir()
            make_tree(top / "tree", files)
            with make_store(top / "store") as store:
                compare(store, top / "tree", link, ignore=ignore)
        finally:
            shutil.rmtree(top)

    check()


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_dedupe_and_undo_change_nothing(memory_path: Path, link: str, scale: Scale) -> None:
    run_examples(memory_path, link, scale(8, 400))


@pytest.mark.root
@pytest.mark.program("mkfs.xfs")
def test_sharing_blocks_and_undo_change_nothing(xfs: Path, scale: Scale) -> None:
    run_examples(xfs, "reflink", scale(3, 100))
