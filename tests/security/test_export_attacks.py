"""Neither a crafted store nor somebody who can write at the target leads an export outside it.

Method: trees that no import makes are put record by record; attackers are real processes of another
user, or names swapped right before the system call that uses them (``swaps.py``).
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dedupfs.errors import CorruptError, UsageError
from dedupfs.format.tree import decode_tree, encode_tree
from dedupfs.maintenance.check import check
from dedupfs.model import Extent, RecordKind, Tree, TreeEntry
from dedupfs.namespace.contents import store_content
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import directory_entry, put_tree
from dedupfs.store import Store
from dedupfs.transfer.export import export_tree
from dedupfs.transfer.ingest import ingest_tree
from dedupfs.transfer.report import Progress
from dedupfs.transfer.tar import export_tar
from tests.cli.conftest import Run
from tests.fuse.harness import run_code
from tests.security.swaps import before_open

NOBODY = 65534
OTHER = 54321
IMPOSSIBLE = [b"", b".", b"..", b"/abs", b"../escaped", b"a/b", b"nul\0", b"x" * 256]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", chunk_bytes_average=4096, compression="none") as store:
        yield store


@pytest.fixture
def sound(store: Store) -> Iterator[Store]:
    """The store, for tests that put nothing crafted into it."""
    yield store
    assert [str(problem) for problem in check(store).problems] == []


def file_entry(store: Store, name: bytes, data: bytes, **fields: int) -> TreeEntry:
    extents = [Extent(store.put(RecordKind.CHUNK, data), len(data))]
    mode = fields.pop("mode", stat.S_IFREG | 0o644)
    content = store_content(store, extents)
    entry = TreeEntry(name, 0, mode, os.geteuid(), os.getegid(), size=len(data), content=content)
    return msgspec.structs.replace(entry, **fields)


def directory(store: Store, name: bytes, children: list[TreeEntry]) -> TreeEntry:
    numbered = [
        msgspec.structs.replace(child, slot=slot) for slot, child in enumerate(children, start=1)
    ]
    tree_id = put_tree(store, numbered, len(numbered) + 1)
    uid, gid = os.geteuid(), os.getegid()
    return directory_entry(name, 1, numbered, tree_id, mode=0o40755, uid=uid, gid=gid, mtime_ns=0)


def add(store: Store, root: TreeEntry, name: str = "s") -> TreeEntry:
    return SnapshotCatalog(store).add(name, root).root


def crafted_tree(store: Store) -> TreeEntry:
    """Every impossible name, as a file and as a directory with a file in it; and one good file."""
    inner = [file_entry(store, b"evil", b"written by the crafted store")]
    children = [file_entry(store, name, b"evil") for name in IMPOSSIBLE]
    children += [directory(store, name, inner) for name in IMPOSSIBLE]
    children.append(file_entry(store, b"good", b"good"))
    return add(store, directory(store, b"", children))


def test_names_that_no_file_can_have_are_not_restored(store: Store, tmp_path: Path) -> None:
    root = crafted_tree(store)
    target = tmp_path / "deep" / "target"
    target.parent.mkdir()
    before = sorted(os.listdir(tmp_path))
    report = export_tree(store, root, target)
    assert os.listdir(target) == ["good"]
    assert report.damaged == 2 * len(IMPOSSIBLE)
    assert os.listdir(target.parent) == ["target"]
    assert sorted(os.listdir(tmp_path)) == before
    assert not check(store).ok  # and it says so before anybody exports


def test_a_tar_stream_has_no_name_that_leads_out(store: Store) -> None:
    root = crafted_tree(store)
    out = io.BytesIO()
    report = export_tar(store, root, out)
    assert report.damaged == 2 * len(IMPOSSIBLE)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        assert archive.getnames() == [".", "./good"]


def test_looking_at_crafted_names_is_safe(store: Store, tmp_path: Path, run: Run) -> None:
    crafted_tree(store)
    add(store, directory(store, b"", [file_entry(store, b"good", b"other")]), "t")
    store.close()
    for arguments in (["ls", "-R"], ["find"], ["diff"]):
        command, *flags = arguments
        rest = {"ls": ["s"], "find": ["*"], "diff": ["s", "t"]}[command]
        text = run(command, tmp_path / "store", *flags, *rest).out
        assert "\0" not in text
    run("export", tmp_path / "store", "s", tmp_path / "out", code=3)
    assert os.listdir(tmp_path / "out") == ["good"]


def test_values_that_no_file_can_have_are_reported_and_the_rest_is_restored(
    store: Store, tmp_path: Path
) -> None:
    xattrs = ((b"nul\0name", b"v"), (b"user.fine", b"v"))
    children = [
        file_entry(store, b"mode", b"2", mode=0),
        file_entry(store, b"owner", b"3", uid=(1 << 32) - 1),
        TreeEntry(b"symlink", 0, stat.S_IFLNK | 0o777, size=3, content=b"a\0b"),
        file_entry(store, b"time", b"4", mtime_ns=(1 << 63) - 1),
        msgspec.structs.replace(file_entry(store, b"xattr", b"5"), xattrs=xattrs),
        TreeEntry(b"device", 0, stat.S_IFCHR | 0o600, rdev=(1 << 64) - 1),
        file_entry(store, b"zzz", b"good"),
    ]
    root = add(store, directory(store, b"", children))
    report = export_tree(store, root, tmp_path / "target")
    paths = {problem.path for problem in report.problems}
    assert {b"mode", b"symlink", b"xattr"} <= paths
    assert (tmp_path / "target" / "zzz").read_bytes() == b"good"
    export_tar(store, root, io.BytesIO())


@pytest.mark.parametrize(
    "field",
    [{"mode": -1}, {"mode": 1 << 40}, {"uid": -1}, {"gid": 1 << 32}, {"nlink": -5}, {"slot": -1}],
    ids=str,
)
def test_numbers_that_no_inode_has_are_refused_by_whoever_decodes_them(
    store: Store, field: dict[str, int]
) -> None:
    entry = msgspec.structs.replace(file_entry(store, b"f", b"1"), **field)
    with pytest.raises(CorruptError):
        decode_tree(encode_tree(Tree(2, (entry,))))


# --- who is at the target -------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    (path / "b").mkdir(parents=True)
    (path / "a").write_bytes(b"1")
    (path / "b" / "inner").write_bytes(b"2")
    (path / "pointer").symlink_to("a")
    return path


def imported(store: Store, source: Path) -> TreeEntry:
    info = ingest_tree(store, source, "s").snapshot
    assert info is not None
    return info.root


def test_a_directory_with_hostile_links_in_it_is_refused(
    sound: Store, source: Path, tmp_path: Path
) -> None:
    target, outside = tmp_path / "target", tmp_path / "outside"
    for path in (target, outside):
        path.mkdir()
    (target / "b").symlink_to(outside)
    with pytest.raises(UsageError, match="not empty"):
        export_tree(sound, imported(sound, source), target)
    assert os.listdir(outside) == []


@pytest.mark.root
def test_nobody_else_can_write_where_an_export_is_under_way(
    sound: Store, source: Path, open_directory: Path
) -> None:
    """The target is another user's, and open to all: he tries while it is being filled."""
    target = open_directory / "target"
    target.mkdir()
    os.chown(target, NOBODY, NOBODY)
    target.chmod(0o777)
    tried: list[subprocess.CompletedProcess[str]] = []

    def attack(progress: Progress) -> None:
        if not tried:
            assert stat.S_IMODE(target.stat().st_mode) == 0o700
            code = f"os.symlink('/etc', {str(target / 'b')!r})"
            tried.append(run_code(code, NOBODY))

    report = export_tree(sound, imported(sound, source), target, progress=attack)
    assert "PermissionError" in tried[0].stderr
    assert not report.problems
    assert sorted(os.listdir(target)) == ["a", "b", "pointer"]
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(source.stat().st_mode)


def test_what_replaces_a_new_object_is_not_given_its_owner(
    sound: Store, source: Path, tmp_path: Path
) -> None:
    """A link to somebody's file, put where an export has just made a symlink, keeps its times."""
    root = imported(sound, source)
    precious = tmp_path / "precious"
    precious.symlink_to("nowhere")
    before = precious.lstat()
    target = tmp_path / "target"

    def replace() -> None:
        (target / "pointer").unlink()
        os.link(precious, target / "pointer", follow_symlinks=False)

    with before_open(b"pointer", replace) as opens:
        report = export_tree(sound, root, target)
    assert opens
    assert [problem.path for problem in report.problems] == [b"pointer"]
    after = precious.lstat()
    assert (after.st_mtime_ns, after.st_uid) == (before.st_mtime_ns, before.st_uid)


@pytest.mark.root
def test_a_set_user_id_program_becomes_nobody_elses(open_directory: Path) -> None:
    """Root restores it as it was; a user who cannot give it its owner does not get it as his."""
    base = open_directory / "suid"
    base.mkdir()
    source = base / "source"
    source.mkdir()
    for name, owner, mode in (("suid", OTHER, 0o4755), ("sgid", OTHER, 0o2755), ("own", 0, 0o755)):
        (source / name).write_bytes(b"#!")
        os.chown(source / name, owner, owner)
        (source / name).chmod(mode)
    with Store.create(base / "store") as store:
        report = export_tree(store, imported(store, source), base / "as-root")
        assert not report.problems
        assert not check(store).problems
    assert stat.S_IMODE((base / "as-root" / "suid").stat().st_mode) == 0o4755
    subprocess.run(["chown", "-R", str(NOBODY), base / "store"], check=True)
    (base / "home").mkdir()
    os.chown(base / "home", NOBODY, NOBODY)
    out = base / "home" / "out"
    code = (  # imported as root, since an ordinary user may not reach the interpreter's files
        "from pathlib import Path; from dedupfs.store import Store;"
        "from dedupfs.namespace.snapshots import SnapshotCatalog;"
        "from dedupfs.transfer.export import export_tree; from tests.fuse.harness import become;"
        f"become({NOBODY}); store = Store.open(Path({str(base / 'store')!r}));"
        f"report = export_tree(store, SnapshotCatalog(store).get('s').root, Path({str(out)!r}));"
        "print(*report.problems, sep='\\n')"
    )
    done = run_code(code)
    assert done.returncode == 0, done.stderr
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()}
    assert modes == {"suid": 0o755, "sgid": 0o755, "own": 0o755}
    told = [line for line in done.stdout.splitlines() if "set-id" in line]
    assert [line.partition(":")[0] for line in told] == ["sgid", "suid"]


def test_attributes_with_odd_names_survive_tar(sound: Store, source: Path, tmp_path: Path) -> None:
    names = ["user.a=b", "user.100%", "user.line\nbreak", "user.plain"]
    try:
        for name in names:
            os.setxattr(source / "a", name, name.encode())
        os.setxattr(source / "a", "user.\udcff", b"no name for tar")
    except OSError as exc:
        pytest.skip(f"no such attributes here: {exc}")
    with (tmp_path / "out.tar").open("wb") as out:
        report = export_tar(sound, imported(sound, source), out)
    assert [str(problem) for problem in report.problems] == [
        "./a: its attribute user.\\xff is left out: tar has no such names"
    ]
    target = tmp_path / "target"
    target.mkdir()
    assert shutil.which("tar") is not None
    command = ["tar", "--xattrs", "--xattrs-include=user.*", "-xf", str(tmp_path / "out.tar")]
    subprocess.run([*command, "-C", str(target)], check=True)
    found = {name: os.getxattr(target / "a", name) for name in os.listxattr(target / "a")}
    assert found == {name: name.encode() for name in names}
