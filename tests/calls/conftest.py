"""Places where tables of system calls are run: every case of a module's CASES in each of them.

- ``native``: a directory of the machine's own file system, which shows a wrong expectation.
- ``mount``: a directory made in a catalogue view, mounted by root and open to others.
- ``snapshot``: a directory in an imported snapshot of another view, whose mount has no writeback
  cache, while the others have one.
- ``user``: an ordinary user's mount through fusermount3; only that user makes calls there.
- ``READ_ONLY_CASES``: a bind mount, a read-only mount of the catalogue, and one of a snapshot.

A module's PLACES are those of its CASES, all writable ones by default. Without root there are
``native`` and ``mount``, and cases of a single user. At the end the stores are checked.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from dedupfs.fuse.mountpoints import write_back
from dedupfs.namespace.attributes import TIME_NS_MAX
from tests.calls.actor import IDS
from tests.calls.script import Case, Step
from tests.device import device_for_everybody
from tests.fuse.harness import END_TIMEOUT_S, REPOSITORY, Daemons, Mounted, run

WRITABLE = ("native", "mount", "snapshot", "user")
READ_ONLY = ("native", "read-only", "read-only snapshot")
ONLY_ROOT_MAKES = {"snapshot", "user", "read-only", "read-only snapshot"}
POSIX_ENOUGH = ("ext2/ext3", "xfs")
"""File systems that answer as the tables expect; others differ where POSIX leaves the choice."""
CACHED: dict[str, object] = {"supervisor": os.getpid()}
"""Where another daemon would get them, the kernel keeps writes in its page cache."""
UNCACHED: dict[str, object] = {"view": "uncached"}
NAME_BYTES_MAX = 255
PATH_BYTES_MAX = 4095


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    parameters = []
    writable = getattr(metafunc.module, "PLACES", WRITABLE)
    for table, places in (("CASES", writable), ("READ_ONLY_CASES", READ_ONLY)):
        for case in getattr(metafunc.module, table, []):
            for place in places:
                if place == "user" and (case.privileged or len(case.actors) > 1):
                    continue
                read_only = table == "READ_ONLY_CASES"
                marks = [pytest.mark.fuse, pytest.mark.unmeasured]
                if case.needs_root or place in ONLY_ROOT_MAKES or read_only:
                    marks.append(pytest.mark.root)
                if place == "user":
                    marks.append(pytest.mark.program("fusermount3"))
                where = "native-read-only" if read_only and place == "native" else place
                parameters.append(pytest.param(where, case, marks=marks, id=f"{where}-{case}"))
    metafunc.parametrize(("place", "case"), parameters, indirect=["place"])


@dataclass
class Place:
    """A directory, and a process that makes calls in it."""

    name: str
    top: Path
    other: Path
    """A directory on another file system."""
    actor: Actor
    writable: bool = True
    case_count: int = 0

    def run(self, case: Case) -> None:
        """Make the calls of ``case`` in a directory of its own and compare the answers."""
        directory = str(self.top)
        if self.writable:
            self.case_count += 1
            assert self.actor.ask(directory, "", "mkdir", str(self.case_count), "777") == "0"
            directory = f"{directory}/{self.case_count}"
            assert self.actor.ask(directory, "", "chmod", ".", "777") == "0"
        for step in case.steps:
            words = [self._filled(word) for word in step.words]
            answer = self.actor.ask(directory, "" if self.name == "user" else step.who, *words)
            self._compare(case, step, answer)

    def _compare(self, case: Case, step: Step, answer: str) -> None:
        expected = step.native if self.name.startswith("native") else step.mounted
        if expected is None:
            right = not (answer.startswith("E") and answer.isupper())
        else:
            right = answer in self._filled(expected).split("|")
        if not right:
            wanted = "success" if expected is None else expected
            pytest.fail(f"{case}\n{step}\nanswered {answer}, not {wanted}", pytrace=False)

    def _filled(self, word: str) -> str:
        if "{" not in word:
            return word
        path = "./" * (PATH_BYTES_MAX // 2)
        reads = os.statvfs(self.other if self.name == "user" else self.top).f_flag & os.ST_NOATIME
        return word.format(
            other=self.other,
            name255="n" * NAME_BYTES_MAX,
            name256="n" * (NAME_BYTES_MAX + 1),
            path4095=path + "p",
            path4096=path + "pp",
            target4095="t" * PATH_BYTES_MAX,
            target4096="t" * (PATH_BYTES_MAX + 1),
            read="-" if reads or self.name == "user" else "a",
        )


class Actor:
    """The process of actor.py."""

    def __init__(self, user: int | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.calls.actor", *([] if user is None else [str(user)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
        )

    def ask(self, directory: str, who: str, *words: str) -> str:
        """Have a call made and return the answer."""
        asked, told = self._process.stdin, self._process.stdout
        assert asked is not None
        assert told is not None
        asked.write(json.dumps([directory, who, *words]).encode() + b"\n")
        asked.flush()
        readable, _, _ = select.select([told], [], [], END_TIMEOUT_S)
        assert readable, f"no answer to {words}"
        answer = told.readline()
        assert answer.endswith(b"\n"), f"the actor ended over {words}"
        return answer.decode().rstrip("\n")

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(END_TIMEOUT_S) == 0


class Places:
    """All places, each made when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._daemons = Daemons(directory)
        self._users = Daemons(directory, user=IDS["alice"])
        self._made: dict[str, Place] = {}
        self._bound: list[Path] = []
        self._device = ExitStack()

    def get(self, name: str) -> Place:
        if name not in self._made:
            self._made[name] = getattr(self, "_" + name.replace("-", "_").replace(" ", "_"))(name)
        return self._made[name]

    def _native(self, name: str) -> Place:
        kind = run("stat", "-f", "-c", "%T", self._directory).strip()
        if kind not in POSIX_ENOUGH:
            pytest.skip(f"the tables are not for {kind}")
        top = self._directory / "native"
        top.mkdir(exist_ok=True)
        return Place(name, top, self.get("mount").top, Actor())

    def _mount(self, name: str) -> Place:
        self._import_samples()
        mounted = self._start("mnt", **CACHED)
        top = mounted.path / "made"
        top.mkdir()
        return Place(name, top, self._plain(), Actor())

    def _snapshot(self, name: str) -> Place:
        self._import_samples()
        mounted = self._start("uncached", **UNCACHED)
        return Place(name, mounted.path / "samples", self._plain(), Actor())

    def _start(self, name: str, **options: object) -> Mounted:
        return self._daemons.start(name, allow_other=os.geteuid() == 0, **options)  # type: ignore[arg-type]

    def _user(self, name: str) -> Place:
        self._device.enter_context(device_for_everybody())
        own = self._directory / "own"
        own.mkdir()
        os.chown(own, IDS["alice"], IDS["alice"])
        mounted = self._users.start("own/mnt", store="own/store", **CACHED)  # type: ignore[arg-type]
        return Place(name, mounted.path, self._plain(), Actor(IDS["alice"]))

    def _native_read_only(self, name: str) -> Place:
        samples = self._import_samples()
        top = self._directory / "bound"
        top.mkdir()
        run("mount", "--bind", samples, top)
        self._bound.append(top)
        run("mount", "-o", "remount,bind,ro", top)
        return Place(name, top, self._plain(), Actor(), writable=False)

    def _read_only(self, name: str) -> Place:
        self._import_samples()
        mounted = self._daemons.start("read-only", read_only=True, allow_other=True)
        return Place(name, mounted.path / "samples", self._plain(), Actor(), writable=False)

    def _read_only_snapshot(self, name: str) -> Place:
        self._import_samples()
        mounted = self._daemons.start("fixed", snapshot="samples", read_only=True, allow_other=True)
        return Place(name, mounted.path, self._plain(), Actor(), writable=False)

    def _plain(self) -> Path:
        plain = self._directory / "plain"
        plain.mkdir(exist_ok=True)
        plain.chmod(0o777)
        return plain

    def _import_samples(self) -> Path:
        """Make the snapshot ``samples``, and return the directory that it was made of."""
        samples = self._directory / "samples"
        if not samples.exists():
            (samples / "d" / "full").mkdir(parents=True)
            (samples / "empty").mkdir()
            (samples / "f").write_text("text")
            (samples / "s").symlink_to("f")
            os.mkfifo(samples / "p")
            for path in (samples, samples / "f", samples / "d", samples / "empty"):
                path.chmod(0o777)
            dedupfs("init", self._directory / "store")
            dedupfs("import", self._directory / "store", samples, "samples")
        return samples

    def end(self) -> None:
        """Look at everything once more after a death, and end it, whatever of that goes wrong."""
        with ExitStack() as last_first:
            last_first.callback(self._end_daemons)
            for top in self._bound:
                last_first.callback(run, "umount", top)
            for name, options in (("mnt", CACHED), ("uncached", UNCACHED)):
                last_first.callback(self._die_and_compare, name, options)
            for place in self._made.values():
                last_first.callback(place.actor.end)

    def _die_and_compare(self, name: str, options: dict[str, object]) -> None:
        """What all cases left is the same after SIGKILL of the daemon, and after a remount."""
        path = self._directory / name
        mounted = next((found for found in self._daemons.started if found.path == path), None)
        if mounted is None:
            return
        write_back(mounted.path)  # of times that it keeps, the kernel has told none yet
        before = seen_below(mounted.path)
        mounted.kill()
        for _ in range(2):
            again = self._start(name, **options)
            after = seen_below(again.path)
            different = [path for path in before | after if before.get(path) != after.get(path)]
            assert not different, [(path, before.get(path), after.get(path)) for path in different]
            assert again.end() == 0

    def _end_daemons(self) -> None:
        """The stores must be sound and no daemon may have complained."""
        both = (self._users, self._daemons)
        for daemons in both:
            daemons.end_all()
        self._device.close()
        for daemons in both:
            for store in {mounted.store for mounted in daemons.started}:
                dedupfs("check", store)
            assert daemons.complaints() == []


def seen_below(top: Path) -> dict[str, object]:
    """Return inode number, attributes and extended attributes of everything below ``top``."""
    seen: dict[str, object] = {}
    for directory, _directories, files, fd in os.fwalk(top):  # paths may be too long for a call
        here = f"/proc/self/fd/{fd}/."
        seen[directory] = _identity(os.fstat(fd), here)
        for name in files:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            seen[f"{directory}/{name}"] = _identity(found, f"/proc/self/fd/{fd}/{name}")
    return seen


def _identity(found: os.stat_result, path: str) -> object:
    try:
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    except PermissionError:  # an ordinary user's own file of mode 0
        xattrs = {}
    who = (found.st_ino, found.st_mode, found.st_uid, found.st_gid, found.st_nlink, found.st_rdev)
    # A kernel that keeps times keeps what it was told, until it forgets the file.
    told = (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
    times = [max(-TIME_NS_MAX, min(time_ns, TIME_NS_MAX)) for time_ns in told]
    return who, found.st_size, times, xattrs


def dedupfs(*words: str | Path) -> None:
    """Run a command of dedupfs, which must succeed."""
    run(sys.executable, "-m", "dedupfs", *words)


@pytest.fixture(scope="package")
def places() -> Iterator[Places]:
    with tempfile.TemporaryDirectory(prefix="dedupfs-") as name:
        directory = Path(name).resolve()
        directory.chmod(0o755)
        made = Places(directory)
        try:
            yield made
        finally:
            made.end()


@pytest.fixture
def place(places: Places, request: pytest.FixtureRequest) -> Place:
    return places.get(request.param)
