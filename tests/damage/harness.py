"""A store to be damaged, ways to damage a file, and commands that run in a process of their own.

A command may crash its process (LMDB trusts what it maps) or hang, so each runs in a child with a
limit; what it printed and how it ended is the answer.
"""

from __future__ import annotations

import io
import logging
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dedupfs.cli import main
from dedupfs.cli.crashes import tell_crashes
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import Caller, View
from dedupfs.store import Store
from tests.maintenance.samples import SMALL, import_directory, make_directory, noise

LIMIT_S = 120
ROOT = Caller(0, 0)
SNAPSHOTS = ("one", "two", "copy")
VIEWS = ("folded", "killed")
EXPECTED_CODES = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 8})


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: a signal) and what it wrote."""

    command: str
    code: int
    out: bytes
    err: str

    def __str__(self) -> str:
        return f"{self.command} -> {self.code}\n{self.err[-2000:]}"


def run(*arguments: object, limit_s: int = LIMIT_S) -> Ended:
    """Run a command in a child."""
    argv = [str(argument) for argument in arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os._exit(_be_the_command(argv, out.fileno(), err.fileno(), limit_s))
        _, status = os.waitpid(pid, 0)
        out.seek(0)
        err.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return Ended(" ".join(argv), code, out.read(), err.read().decode(errors="replace"))


def _be_the_command(argv: list[str], out: int, err: int, limit_s: int) -> int:
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))  # not pytest's
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False))
    for handler in list(logging.getLogger().handlers):
        logging.getLogger().removeHandler(handler)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(limit_s)
    tell_crashes()
    try:
        code = main(argv)
        sys.stdout.flush()
        return code
    except BaseException as exc:  # noqa: BLE001 - the parent must see that main let it through
        os.write(2, f"main let through {exc!r}\n".encode())
        return 99


def require_told(ended: Ended) -> Ended:
    """Fail unless the command did its work, or said in our own words why it could not."""
    assert ended.code in EXPECTED_CODES, str(ended)
    assert "Traceback" not in ended.err, str(ended)
    strange = [line for line in ended.err.splitlines() if not line.startswith("dedupfs: ")]
    # LMDB says where an assertion failed before it aborts; nothing can keep it from that.
    strange = [line for line in strange if "Assertion" not in line]
    assert not strange, str(ended)
    assert ended.code in (0, 1) or ended.err, str(ended)
    return ended


# --- the store ------------------------------------------------------------------------------------


def make_store(top: Path) -> Path:
    """Make a closed store with everything in it that can be damaged; return its path.

    Two snapshots that share files, a clone, a removed one; a folded view, and one whose daemon
    was killed, with a journal and a staging file.
    """
    path = top / "store"
    for number, name in enumerate(("zero", "one", "two")):
        make_directory(top / name, number)
        (top / name / "shared").write_bytes(noise("shared", 30_000))
    with Store.create(path, **SMALL) as store:
        for name in ("zero", "one", "two"):
            import_directory(store, top / name, name)
        catalog = SnapshotCatalog(store)
        catalog.clone("one", "copy")
        catalog.remove(["zero"])
        view = View.bring_back(store, "folded", snapshot="one")
        write_file(view, b"new", noise("new", 90_000))
        view.close()
    pid = os.fork()
    if pid == 0:
        child = Store.open(path)
        view = View.bring_back(child, "killed", snapshot="two")
        write_file(view, b"buffered", noise("buffered", 900))
        write_file(view, b"staged", noise("staged", 30_000))
        view.unlink(1, b"medium")
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    return path


def write_file(view: View, name: bytes, data: bytes) -> None:
    """Make a file in the root of a view, durably."""
    handle, _attr = view.create(1, name, 0o644, ROOT)
    view.write(handle, 0, data)
    view.plan_fsync(view.inode_of(handle)).run()
    view.release(handle)


Files = dict[str, bytes]


def files_of(directory: Path) -> Files:
    """Return what is in a directory of the file system: path -> type and bytes."""
    found: Files = {}
    for path in directory.rglob("*"):
        mode = path.lstat().st_mode
        name = str(path.relative_to(directory))
        if stat.S_ISREG(mode):
            found[name] = b"file" + path.read_bytes()
        elif stat.S_ISLNK(mode):
            found[name] = b"link" + os.fsencode(os.readlink(path))
        else:
            found[name] = b"directory"
    return found


def exported(path: Path, snapshot: str) -> tuple[Ended, Files]:
    """Export a snapshot; return how that ended, and what came out."""
    target = Path(tempfile.mkdtemp(prefix="damage-export-"))
    try:
        ended = run("export", path, snapshot, target / "out")
        return ended, files_of(target / "out")
    finally:
        shutil.rmtree(target)


# --- damage ---------------------------------------------------------------------------------------

Damage = Callable[[Path, random.Random], str]


def _writable(path: Path) -> None:
    path.chmod(0o600)


def flip(path: Path, chance: random.Random) -> str:
    """Turn up to 8 single bits round."""
    data = bytearray(path.read_bytes())
    _writable(path)
    places = [chance.randrange(len(data)) for _ in range(chance.choice([1, 1, 2, 8]))]
    for place in places:
        data[place] ^= 1 << chance.randrange(8)
    _rewrite(path, data)
    return f"bits at {places}"


def truncate(path: Path, chance: random.Random) -> str:
    """Cut the file off."""
    _writable(path)
    length = chance.choice([0, chance.randrange(path.stat().st_size)])
    os.truncate(path, length)
    return f"cut to {length}"


def zero(path: Path, chance: random.Random) -> str:
    """Zero a range, often whole blocks, as disks and file systems do."""
    return _overwrite(path, chance, bytes)


def scribble(path: Path, chance: random.Random) -> str:
    """Overwrite a range with noise."""
    return _overwrite(path, chance, chance.randbytes)


def _overwrite(path: Path, chance: random.Random, make: Callable[[int], bytes]) -> str:
    data = bytearray(path.read_bytes())
    _writable(path)
    start = chance.randrange(len(data))
    length = chance.choice([1, 16, 100, 4096, 20_000])
    if length >= 4096:
        start = start // 4096 * 4096
    stop = min(len(data), start + length)
    data[start:stop] = make(stop - start)
    _rewrite(path, data)
    return f"{start} to {stop} overwritten by {make.__name__}"


def _rewrite(path: Path, data: bytearray) -> None:
    """Write in place, so that other names of the file see it."""
    with path.open("r+b") as file:
        file.write(data)


def delete(path: Path, _chance: random.Random) -> str:
    """Remove the file."""
    path.unlink()
    return "deleted"


def append(path: Path, chance: random.Random) -> str:
    """Put noise behind the end."""
    _writable(path)
    with path.open("ab") as file:
        file.write(chance.randbytes(chance.randrange(1, 5000)))
    return "lengthened"


DAMAGES: list[Damage] = [flip, flip, truncate, zero, zero, scribble, delete, append]


def damage_files(files: list[Path], chance: random.Random, count: int) -> list[str]:
    """Damage random files; return what was done."""
    done = []
    for _ in range(count):
        path = chance.choice(files)
        if not path.exists():
            continue
        kind = chance.choice(DAMAGES)
        if not path.stat().st_size and kind not in (delete, append):
            continue
        done.append(f"{path.name} {kind.__name__} {kind(path, chance)}")
    return done
