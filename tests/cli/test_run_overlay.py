"""`dedupfs run --engine overlay`: what it commits is what the engine of FUSE commits.

Method: the same random operations (tests/cli/file_operations.py) run in both engines; each must get
the same answers in both, and the two snapshots must be alike in everything.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dedupfs.model import TreeEntry
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store
from dedupfs.transfer.compare import Difference, Kind, compare
from dedupfs.transfer.entries import entries_below
from tests.cli import file_operations
from tests.cli.conftest import Run
from tests.cli.test_run import (
    USER,
    as_user,
    assert_next_command_clears,
    assert_nothing_left,
    run_in,
    snapshot,
    start,
    users_store,
)
from tests.conftest import Scale
from tests.fuse.harness import END_TIMEOUT_S, REPOSITORY, read_until

__all__ = ["snapshot", "users_store"]

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.unmeasured]


@pytest.fixture
def upper_dir() -> Iterator[Path]:
    """A directory in which no run may leave anything; not below pytest's, which may be anywhere."""
    with tempfile.TemporaryDirectory(prefix="dedupfs-test-") as name:
        path = Path(name).resolve()
        path.chmod(0o755)
        if not takes_overlay(path):
            pytest.skip("overlayfs cannot write where temporary files go")
        yield path
        assert list(path.glob("dedupfs-run-*")) == []


def takes_overlay(directory: Path) -> bool:
    """Whether the machine's kernel mounts an overlay with its upper directory here."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        for part in ("lower", "upper", "work"):
            Path(name, part).mkdir()
        options = "lowerdir=lower,upperdir=upper,workdir=work,userxattr"
        script = f"cd {name} && mount -t overlay overlay -o {options} {name}"
        done = subprocess.run(["unshare", "-Urm", "sh", "-ec", script], check=False)
        return done.returncode == 0


def in_overlay(
    store: Path, upper_dir: Path, script: str, *options: object, code: int = 0, snap: str = "snap"
) -> tuple[str, str]:
    engine = ["--engine", "overlay", "--upper-dir", upper_dir]
    return run_in(store, snap, *engine, *options, "--", "sh", "-ec", script, code=code)


def make_tree(top: Path, seed: int) -> None:
    """Make the names that operations know, small and large, with links and attributes."""
    rng = random.Random(seed)
    directories = ("", "b", "c", "b/c", "c/a", "c/a/b")
    for directory in directories:
        (top / directory).mkdir(exist_ok=True)
    for directory in directories:
        for name in ("a", "b", "c"):
            if not (top / directory / name).exists() and rng.random() < 0.7:
                size = rng.choice([0, 10, 5000, 400_000])
                (top / directory / name).write_bytes(rng.randbytes(size))
    (top / "l1").write_bytes(b"linked")
    os.link(top / "l1", top / "l2")
    os.link(top / "l1", top / "b/l3")
    (top / "b/untouched").write_bytes(b"untouched")
    os.link(top / "b/untouched", top / "b/untouched too")
    os.setxattr(top / "c", "user.x", b"1")
    for path in [top, *top.rglob("*")]:
        os.utime(path, ns=(0, 1_500_000_000_000_000_000 + rng.randrange(1 << 30)))


@dataclass(frozen=True)
class Job:
    """The two runs of one seed."""

    store: Path
    upper_dir: Path
    python: str
    user: int | None

    def run(self, engine: str, operations: Path) -> list[str]:
        """Do the operations and commit them; return what the kernel answered."""
        results = operations.with_name(f"{operations.stem}.{engine}")
        options: list[object] = ["--engine", engine, "--commit", f"{operations.stem}-{engine}"]
        if engine == "overlay":
            options += ["--upper-dir", self.upper_dir]
        program = operations.with_name("program.py")
        words = [self.store, "snap", *options, "--", self.python, program, operations, results]
        if self.user is None:
            run_in(*words)
        else:
            as_user("run", *words)
        answers: list[str] = json.loads(results.read_bytes())
        return answers


def do_in_both(job: Job, place: Path, seed: int, count: int) -> int:
    """Do the same in both engines, and return when that began."""
    print(f"{seed=} {count=}")  # noqa: T201  to repeat it
    operations = place / f"s{seed}.json"
    wanted = file_operations.operations(seed, count, as_root=job.user is None)
    operations.write_text(json.dumps(wanted))
    answers = {engine: job.run(engine, operations) for engine in ("fuse", "overlay")}
    unlike = [
        (number, wanted[number], *pair)
        for number, pair in enumerate(zip(answers["fuse"], answers["overlay"], strict=True))
        if pair[0] != pair[1]
    ]
    assert unlike == []
    assert answers["fuse"].count("done") > 20  # 46 of 300 with a seed of an ordinary user's
    return operations.stat().st_mtime_ns


def assert_alike(store_path: Path, seed: int, began_ns: int) -> None:
    with Store.open(store_path) as store:
        roots = [SnapshotCatalog(store).get(f"s{seed}-{e}").root for e in ("fuse", "overlay")]
        found = [d for d in compare(store, *roots) if not only_made_at_other_times(d, began_ns)]
        assert found == []
        reader = TreeReader(store)
        listed = [dict(entries_below(reader, root)) for root in roots]
        assert link_groups(listed[0]) == link_groups(listed[1])
        for path, entry in listed[0].items():
            other = listed[1][path]
            if entry.is_directory:
                assert is_same_time(entry.mtime_ns, other.mtime_ns, began_ns), path
                assert (entry.nlink, entry.count) == (other.nlink, other.count), path


def is_same_time(one_ns: int, other_ns: int, began_ns: int) -> bool:
    """Whether two times are the same, or are both of a moment within the run."""
    return one_ns == other_ns or min(one_ns, other_ns) >= began_ns


def only_made_at_other_times(found: Difference, began_ns: int) -> bool:
    before, after = found.before, found.after
    if found.kind is not Kind.METADATA or before is None or after is None:
        return False
    same = (before.mode, before.uid, before.gid, before.xattrs) == (
        after.mode,
        after.uid,
        after.gid,
        after.xattrs,
    )
    return same and is_same_time(before.mtime_ns, after.mtime_ns, began_ns)


def link_groups(listed: dict[bytes, TreeEntry]) -> set[frozenset[bytes]]:
    groups: dict[bytes, set[bytes]] = {}
    for path, entry in listed.items():
        if entry.is_link:
            groups.setdefault(entry.content, set()).add(path)
    return {frozenset(paths) for paths in groups.values() if len(paths) > 1}


def seeds(count: int) -> list[int]:
    if os.environ.get("CI") == "true":
        return list(range(count))
    return [random.SystemRandom().randrange(1 << 30) for _ in range(count)]


def test_random_operations_commit_the_same_in_both_engines(
    store_path: Path, tmp_path: Path, upper_dir: Path, run: Run, scale: Scale
) -> None:
    tree = tmp_path / "tree"
    make_tree(tree, 1)
    run("import", store_path, tree, "snap")
    shutil.copy(file_operations.__file__, tmp_path / "program.py")
    job = Job(store_path, upper_dir, sys.executable, None)
    for seed in seeds(scale(2, 60)):
        assert_alike(store_path, seed, do_in_both(job, tmp_path, seed, scale(400, 600)))
    assert_nothing_left(store_path)


def python_of_all() -> str:
    """Return an interpreter that an ordinary user may start."""
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        done = subprocess.run(
            [sys.executable, "-c", BECOME, str(USER), python, "-c", ""],
            cwd=REPOSITORY,
            capture_output=True,
            check=False,
            timeout=END_TIMEOUT_S,
        )
        if done.returncode == 0:
            return python
    pytest.skip("no Python that an ordinary user may start")


BECOME = """
import os, sys
from tests.fuse.harness import become
become(int(sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""


def take_in_what_its_owner_may_not_read(store: Path, upper_dir: Path) -> None:
    script = "mkdir -p dark/in; echo 1 >dark/in/file; echo 2 >secret; chmod 0 secret dark/in dark"
    options = ["--engine", "overlay", "--upper-dir", upper_dir, "--commit", "kept"]
    as_user("limit", store, "1KiB")
    as_user("run", store, "snap", *options, "--", "sh", "-ec", script, code=5)
    as_user("limit", store, "none")
    (kept,) = upper_dir.glob("dedupfs-run-*")
    as_user("commit", store, "kept", "--upper", kept)
    assert as_user("cat", store, "kept:dark/in/file", "kept:secret") == "1\n2\n"


def test_so_they_do_for_an_ordinary_user(
    users_store: Path, tmp_path: Path, upper_dir: Path, scale: Scale
) -> None:
    python = python_of_all()
    place = users_store.parent
    upper_dir.chmod(0o1777)
    make_tree(place / "tree", 2)
    shutil.copy(file_operations.__file__, place / "program.py")
    for path in [place, *place.rglob("*")]:
        os.chown(path, USER, USER, follow_symlinks=False)
    as_user("init", users_store)
    as_user("import", users_store, place / "tree", "snap")
    job = Job(users_store, upper_dir, python, USER)
    done = {seed: do_in_both(job, place, seed, scale(300, 600)) for seed in seeds(scale(1, 50))}
    take_in_what_its_owner_may_not_read(users_store, upper_dir)
    assert as_user("check", users_store).startswith("no problems")
    assert_nothing_left(users_store)
    for path in [users_store, *users_store.rglob("*")]:
        os.chown(path, 0, 0)
    for seed, began_ns in done.items():
        assert_alike(users_store, seed, began_ns)


def test_what_cannot_be_committed_is_kept_and_taken_in_later(
    snapshot: Path, upper_dir: Path, run: Run
) -> None:
    script = "echo new > a.txt; rm -r sub; mkdir sub; chmod 000 sub; echo ready; read x"
    options = ["--engine", "overlay", "--upper-dir", upper_dir, "--commit", "taken"]
    process = start(snapshot, "snap", *options, "--", "sh", "-ec", script)
    assert process.stdout is not None
    read_until(process.stdout, lambda said: said == b"ready\n")
    run("clone", snapshot, "snap", "taken")
    _, err = process.communicate(b"\n", timeout=END_TIMEOUT_S)
    assert process.returncode == 2, err
    (kept,) = upper_dir.glob("dedupfs-run-*")
    assert f"dedupfs commit {snapshot} NAME --upper {kept}" in err.decode()
    in_overlay(snapshot, upper_dir, "true")
    assert kept.is_dir(), "another run has removed it"
    run("commit", snapshot, "later", "--upper", kept, "--tag", "ci=7")
    assert run("cat", snapshot, "later:a.txt").out == "new\n"
    assert run("ls", snapshot, "later").out.split() == ["a.txt", "pointer", "sub"]
    assert run("ls", snapshot, "later:sub").out == ""
    run("commit", snapshot, "again", "--upper", kept, code=2)


def test_a_full_upper_directory_is_taken_in(snapshot: Path, upper_dir: Path, run: Run) -> None:
    words = [sys.executable, "-m", "dedupfs", "run", snapshot, "snap", "--engine", "overlay"]
    words += ["--upper-dir", upper_dir, "--commit", "made", "--"]
    words += ["sh", "-c", "head -c 600000 /dev/urandom >some; ! cat /dev/zero >rest"]
    script = f'mount -t tmpfs -o size=1m tmpfs {upper_dir} && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=END_TIMEOUT_S,
    )
    assert done.returncode == 0, done
    assert "No space left" in done.stderr
    listed = {row["path"]: row for row in run("ls", snapshot, "made", "--json").json}
    assert listed["some"]["size"] == 600000
    assert listed["rest"]["size"] > 100000


def test_an_empty_directory_of_a_killed_run_goes_too(snapshot: Path, upper_dir: Path) -> None:
    """A run makes its lock after its directory, and removes it before."""
    (upper_dir / "dedupfs-run-begun").mkdir()
    in_overlay(snapshot, upper_dir, "true")


def test_what_a_killed_run_leaves_goes_with_the_next(
    snapshot: Path, upper_dir: Path, run: Run
) -> None:
    script = "mkdir -m 000 dark; echo x > new; echo ready; read x"
    options = ["--engine", "overlay", "--upper-dir", upper_dir, "--commit", "never"]
    process = start(snapshot, "snap", *options, "--", "sh", "-c", script)
    assert process.stdout is not None
    read_until(process.stdout, lambda said: said == b"ready\n")
    (living,) = upper_dir.glob("dedupfs-run-*")
    in_overlay(snapshot, upper_dir, "true")
    assert (living / "upper" / "new").exists(), "another run has removed it"
    process.kill()
    process.communicate(timeout=END_TIMEOUT_S)
    assert_next_command_clears(snapshot, run)
    assert living.is_dir()
    in_overlay(snapshot, upper_dir, "test ! -e new")
    assert not living.exists()


def test_large_files_are_taken_in(snapshot: Path, upper_dir: Path, run: Run) -> None:
    script = (
        "head -c 70000000 /dev/urandom >large; head -c 2000000 /dev/urandom >middle;"
        "truncate -s 5G sparse; cp large twice; sha256sum large middle twice"
    )
    out, _ = in_overlay(snapshot, upper_dir, script, "--commit", "made")
    script = "sha256sum large middle twice; stat -c %s sparse"
    assert run_in(snapshot, "made", "--", "sh", "-ec", script)[0] == out + "5368709120\n"
    assert run("stats", snapshot, "--json").json["stored_bytes"] < 73_000_000


def test_a_snapshot_that_is_removed_meanwhile_is_still_what_is_changed(
    snapshot: Path, upper_dir: Path, run: Run
) -> None:
    options = ["--engine", "overlay", "--upper-dir", upper_dir, "--commit", "made"]
    script = "echo more >> a.txt; echo ready; read x"
    process = start(snapshot, "snap", *options, "--", "sh", "-c", script)
    assert process.stdout is not None
    read_until(process.stdout, lambda said: said == b"ready\n")
    run("rm", snapshot, "snap")
    run("gc", snapshot)
    out, err = process.communicate(b"\n", timeout=END_TIMEOUT_S)
    assert (process.returncode, out, err) == (0, b"", b"")
    assert run("cat", snapshot, "made:a.txt").out == "hello\nmore\n"
    assert run("ls", snapshot, "made").out.split() == ["a.txt", "pointer", "sub"]


def test_binds_may_cover_the_store_and_what_was_written(
    snapshot: Path, upper_dir: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "other").mkdir()
    binds = ["--bind", f"{tmp_path}/other:{upper_dir}", "--bind", f"{tmp_path}/other:in/side"]
    script = "echo 1 > a.txt; echo 2 > in/side/file; ls -A"
    binds += ["--at", str(tmp_path), "--commit", "made"]
    out, _ = in_overlay(snapshot, upper_dir, script, *binds)
    assert out.split() == ["a.txt", "in", "pointer", "sub"]
    assert (tmp_path / "other/file").read_text() == "2\n"
    assert run("cat", snapshot, "made:a.txt").out == "1\n"
    assert run("ls", snapshot, "made:in/side").out == ""


def test_it_says_where_overlayfs_cannot_write(snapshot: Path, upper_dir: Path) -> None:
    with tempfile.TemporaryDirectory(dir=upper_dir) as name:
        for part in ("upper", "work", "merged"):
            Path(name, part).mkdir()
        options = f"lowerdir=/usr,upperdir={name}/upper,workdir={name}/work"
        mount = f"mount -t overlay overlay -o {options} {name}/merged"
        words = [sys.executable, "-m", "dedupfs", "run", snapshot, "snap", "--engine", "overlay"]
        script = f'{mount} && exec "$@" --upper-dir {name}/merged -- true'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", script, "sh", *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
            timeout=END_TIMEOUT_S,
        )
    assert done.returncode == 8, done
    assert "lies on overlay, which overlayfs cannot write to: give a directory" in done.stderr


def test_options_that_do_not_go_together_are_refused(snapshot: Path, upper_dir: Path) -> None:
    in_overlay(snapshot, upper_dir, "true", "--limit", "1MiB", code=2)
    in_overlay(snapshot, upper_dir, "true", "--read-only", code=2)
    run_in(snapshot, "snap", "--upper-dir", upper_dir, "--", "true", code=2)
    in_overlay(snapshot, upper_dir / "missing", "true", code=8)
