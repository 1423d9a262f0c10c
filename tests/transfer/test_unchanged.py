"""What an import takes over unread is what a reading of everything gives.

Method: a directory is changed at random again and again, and after each change imported twice:
once trusting what the last import noted, once reading everything. Both must give the same tree,
but for the numbers of hard links. The second leaves the notes for the next round, as any would.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from dedupfs.model import RecordId, TreeEntry
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store, Table
from dedupfs.transfer.entries import entries_below
from dedupfs.transfer.ingest import IngestOptions, ingest_tree
from dedupfs.transfer.scan import Scan, scan
from dedupfs.transfer.sources import (
    KnownListings,
    SourceRow,
    child_key,
    encode_row,
    listed,
    stamp_of,
    top_key,
)
from tests.conftest import Scale
from tests.transfer.trees import TRUSTING, WARM

READING = IngestOptions(reread=True, racy_ns=TRUSTING.racy_ns)


def root_of(store: Store, source: Path, name: str, options: IngestOptions = TRUSTING) -> TreeEntry:
    report = ingest_tree(store, source, name, options=options)
    assert not report.problems
    assert report.snapshot is not None
    return report.snapshot.root


def tree_of(store: Store, root: TreeEntry) -> list[object]:
    """Return everything in a tree: attributes, contents, and which names are of one inode."""
    reader = TreeReader(store)
    first_names: dict[bytes, bytes] = {}
    found: list[object] = [msgspec.structs.replace(root, content=b"")]
    for path, entry in entries_below(reader, root):
        link = first_names.setdefault(entry.content, path) if entry.is_link else None
        inode = reader.resolve(root, entry)
        content = b"" if inode.is_directory else inode.content
        found.append((path, link, msgspec.structs.replace(inode, content=content)))
    return found


def scanned(store: Store, source: Path) -> Scan:
    fd = os.open(source, os.O_RDONLY)
    try:
        return scan(fd, os.stat(store.path), known=KnownListings(store, os.fsencode(source)))
    finally:
        os.close(fd)


def make(source: Path) -> None:
    for top in ("a", "b", "c"):
        for below in ("x", "y/z"):
            directory = source / top / below
            directory.mkdir(parents=True)
            (directory / "one").write_text(f"one in {directory.name}")
            (directory / "two").write_text(f"two in {top}")
    (source / "c" / "empty").mkdir()


class Changes:
    """One random change of a tree at a time."""

    def __init__(self, source: Path, chance: random.Random) -> None:
        self._source = source
        self._chance = chance
        self._count = 0

    def _directories(self) -> list[Path]:
        return [self._source, *sorted(p for p in self._source.rglob("*") if p.is_dir())]

    def _files(self) -> list[Path]:
        return sorted(p for p in self._source.rglob("*") if p.is_file() and not p.is_symlink())

    def step(self) -> str:
        """Change something; return what."""
        self._count += 1
        kinds = [self._change_file, self._change_directory, self._change_names]
        return self._chance.choice(kinds)()

    def _new(self) -> Path:
        """Return a name that was never there, not even in a tree that this one was linked from."""
        return self._chance.choice(self._directories()) / f"{self._source.name}-{self._count}"

    def _change_file(self) -> str:
        files = self._files()
        if not files:
            self._new().write_text("the only one")
            return "a file where there was none"
        file = self._chance.choice(files)
        kind = self._chance.choice(["same size", "append", "mode", "xattr", "times", "unlink"])
        status = file.stat()
        if kind == "same size":
            file.write_bytes(self._chance.randbytes(status.st_size))
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        elif kind == "append":
            with file.open("ab") as opened:
                opened.write(b"more")
        elif kind == "mode":
            file.chmod(status.st_mode ^ 0o040)
        elif kind == "xattr":
            os.setxattr(file, "user.count", str(self._count).encode())
        elif kind == "times":
            os.utime(file, ns=(1, self._count))
        else:
            file.unlink()
        return f"{kind} of {file}"

    def _change_directory(self) -> str:
        directory = self._chance.choice(self._directories())
        kind = self._chance.choice(["mode", "xattr", "times", "remove"])
        if kind == "mode":
            directory.chmod(directory.stat().st_mode ^ 0o050)
        elif kind == "xattr":
            os.setxattr(directory, "user.count", str(self._count).encode())
        elif kind == "times" or directory == self._source:
            os.utime(directory, ns=(1, self._count))
        else:
            shutil.rmtree(directory)
        return f"{kind} of {directory}"

    def _change_names(self) -> str:
        kind = self._chance.choice(["make", "mkdir", "symlink", "link", "rename", "move"])
        new, files, directories = self._new(), self._files(), self._directories()[1:]
        if kind == "link" and files:
            new.hardlink_to(self._chance.choice(files))
        elif kind == "rename" and files:
            self._chance.choice(files).rename(new)
        elif kind == "move" and directories:
            moved = self._chance.choice(directories)
            if moved in new.parents:
                new = self._source / new.name
            moved.rename(new)
        elif kind == "mkdir":
            new.mkdir()
        elif kind == "symlink":
            new.symlink_to("nowhere")
        else:
            new.write_text(f"new {self._count}")
        return f"{kind} of {new}"


@pytest.mark.parametrize("number", range(3))
def test_any_change_is_seen_wherever_it_is(
    store: Store, source: Path, number: int, scale: Scale
) -> None:
    seed = number if os.environ.get("CI") == "true" else random.randrange(1 << 32)
    print(f"{seed=}")  # noqa: T201
    make(source)
    root_of(store, source, "first")
    changes = Changes(source, random.Random(seed))
    done = []
    for step in range(scale(30, 1_000)):
        done += [changes.step() for _ in range(1 + step % 2)]
        trusting = root_of(store, source, f"trusting-{step}")
        reading = root_of(store, source, f"reading-{step}", READING)
        assert tree_of(store, trusting) == tree_of(store, reading), done[-2:]


def link_tree(source: Path, target: Path) -> None:
    """Make a copy of hard links, as `cp -al` and `rsync --link-dest` do."""
    command = ["cp", "-al", f"{source}/.", str(target)]
    target.mkdir()
    subprocess.run(command, check=True)


@pytest.mark.parametrize("number", range(2))
def test_a_tree_of_hard_links_to_its_sibling_is_read_where_it_differs(
    store: Store, source: Path, number: int, scale: Scale
) -> None:
    seed = number if os.environ.get("CI") == "true" else random.randrange(1 << 32)
    print(f"{seed=}")  # noqa: T201
    chance = random.Random(seed)
    day = source / "day-0"
    make(day)
    days = [day]
    done = []
    for step in range(scale(12, 200)):
        following = source / f"day-{step + 1}"
        link_tree(day, following)
        changes = Changes(following, chance)
        done += [changes.step() for _ in range(step % 3)]
        day = following
        days.append(day)
    unread = 0
    for day in days:
        trusting = ingest_tree(store, day, f"trusting-{day.name}", options=TRUSTING)
        assert trusting.snapshot is not None
        unread += trusting.files_unchanged
        if chance.random() < 0.5:  # it need not be the one before, nor have to do with it at all
            root_of(store, chance.choice(days), f"any-{day.name}")
        reading = root_of(store, day, f"reading-{day.name}", READING)
        assert tree_of(store, trusting.snapshot.root) == tree_of(store, reading), done
    assert unread > len(days)


def test_each_inode_of_a_chain_of_linked_trees_is_read_once(store: Store, source: Path) -> None:
    make(source / "day-0")
    for day in range(1, 4):
        link_tree(source / f"day-{day - 1}", source / f"day-{day}")
        changed = source / f"day-{day}" / "b" / "x" / "two"
        changed.unlink()
        changed.write_bytes(b"x" * day)
    reports = [
        ingest_tree(store, source / f"day-{day}", f"day-{day}", options=TRUSTING)
        for day in range(4)
    ]
    assert [report.files_unchanged for report in reports] == [0, 11, 11, 11]
    assert [report.bytes_read for report in reports][1:] == [1, 2, 3]


def test_what_is_unchanged_is_known_from_the_top_down(store: Store, source: Path) -> None:
    make(source)
    root_of(store, source, "one")
    key = top_key(os.fsencode(source))
    tops = {child_key(key, name) for name in (b"a", b"b", b"c")}
    found = scanned(store, source)
    assert found.unchanged.keys() == tops
    assert sum(below.files for below in found.unchanged.values()) == found.files == 12
    (source / "a" / "x" / "one").write_text("changed")
    below_a = child_key(key, b"a")
    assert scanned(store, source).unchanged.keys() == (tops - {below_a}) | {
        child_key(below_a, b"y")
    }


def test_nothing_warm_or_hard_linked_is_taken_for_unchanged(store: Store, source: Path) -> None:
    make(source)
    ingest_tree(store, source, "warm", options=WARM)
    assert not scanned(store, source).unchanged.keys() - empty_keys(source)
    (source / "a" / "x" / "three").hardlink_to(source / "b" / "x" / "one")
    root_of(store, source, "linked")
    key = top_key(os.fsencode(source))
    unchanged = scanned(store, source).unchanged.keys()
    assert child_key(key, b"c") in unchanged
    assert not {child_key(key, b"a"), child_key(key, b"b")} & unchanged


def empty_keys(source: Path) -> set[bytes]:
    """An empty directory is what it was whatever the times say."""
    return {child_key(child_key(top_key(os.fsencode(source)), b"c"), b"empty")}


def test_a_row_counts_only_with_the_tree_that_it_is_about(store: Store, source: Path) -> None:
    """Two imports at once may leave rows of both: here the directory's is newer than the top's."""
    make(source)
    root_of(store, source, "one")
    with store.reading() as txn:
        rows = dict(txn.scan(Table.SOURCES))
    (source / "a" / "x" / "one").write_text("changed")
    root_of(store, source, "two")
    newer = child_key(child_key(top_key(os.fsencode(source)), b"a"), b"x")
    with store.transaction() as txn:
        for key, row in rows.items():
            if key != newer:
                txn.put(Table.SOURCES, key, row)
    found = scanned(store, source).unchanged
    assert child_key(top_key(os.fsencode(source)), b"a") not in found
    assert newer in found
    trusting = root_of(store, source, "three")
    assert trusting == root_of(store, source, "four", READING)


def test_what_could_not_be_read_of_a_file_is_told_until_it_can(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "directory").mkdir()
    (source / "directory" / "file").write_text("data")
    (source / "directory" / "link").symlink_to("nowhere")
    for path in (source / "directory", source / "directory" / "file"):
        os.setxattr(path, "user.of", path.name.encode())

    def fails(_target: object) -> list[str]:
        raise OSError(errno.EIO, "as told by the test")

    with monkeypatch.context() as patched:
        patched.setattr(os, "listxattr", fails)
        for name in ("one", "two"):
            report = ingest_tree(store, source, name, options=TRUSTING)
            assert len(report.problems) == 4
    trusting = root_of(store, source, "three")
    assert trusting == root_of(store, source, "four", READING)


def test_a_ctime_may_be_any(source: Path) -> None:
    """As where it is the mtime, for want of one: in a mount of dedupfs, or of sshfs."""
    for ctime_ns in (-1, -(10**18), 13 * 10**18, 0):
        fields = list(os.stat(source).__reduce__()[1][0])
        status = os.stat_result(fields, {"st_ctime_ns": ctime_ns, "st_mtime_ns": ctime_ns})
        assert status.st_ctime_ns == ctime_ns
        stamp = stamp_of(status)
        row = encode_row(RecordId(bytes(16)), 1, [stamp])
        assert SourceRow(row).stamps == [stamp]
        assert listed(b"name", 0o100644, 1, ctime_ns, stamp).startswith(b"name\0")


def test_nothing_in_a_mount_of_dedupfs_is_taken_for_unchanged(store: Store, source: Path) -> None:
    """In the next mount other files may have the same numbers and times; here nothing else tells
    of a mount than the attribute that each directory in one has."""
    make(source)
    os.setxattr(source, "user.dedupfs.store", b"/somewhere")
    for name in ("one", "two"):
        report = ingest_tree(store, source, name, options=TRUSTING)
        assert not report.files_unchanged
    assert not scanned(store, source).unchanged.keys() - empty_keys(source)
