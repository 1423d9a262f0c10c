"""Where the demonstration takes place: its temporary directory, commands, promises and measures.

Knows nothing of what is shown (bench/demo.py).
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
COMPARED_FILES = 200
FAILED_OUTSIDE = 7
"""Exit code of dedupfs: a file outside the store could not be read (docs/cli.md)."""


class BrokenPromiseError(Exception):
    """Something shown is not as it was promised."""


class CommandError(Exception):
    """A command ended with an exit code that it should not have."""

    def __init__(self, line: str, code: int, said: str) -> None:
        super().__init__(f"exit code {code} from: {line}\n{said}".rstrip())
        self.code = code
        self.said = said.strip()


def say(text: str = "") -> None:
    print(text, flush=True)


def title(text: str) -> None:
    say(f"\n== {text}")


def note(text: str, started_s: float | None = None) -> None:
    took = "" if started_s is None else f"  [{time.perf_counter() - started_s:.2f} s]"
    say(f"   {text}{took}")


def promise(what: str, holds: bool) -> None:
    if not holds:
        raise BrokenPromiseError(what)
    say(f"   ok: {what}")


def human(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


# --- looking at files -----------------------------------------------------------------------------


def hash_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(directory: Path) -> Iterator[os.DirEntry[str]]:
    """Yield every entry below a directory, links not followed, what cannot be listed left out."""
    pending = [os.fspath(directory)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, PermissionError):
            continue
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            yield entry


def disk_bytes(directory: Path) -> int:
    """Return what a store takes in blocks, as `du -s` does; files may go meanwhile."""
    blocks = 0
    for entry in files_below(directory):
        with suppress(FileNotFoundError):
            blocks += entry.stat(follow_symlinks=False).st_blocks
    return blocks * 512


def tree_bytes(directory: Path, bytes_max: float, entries_max: float) -> int | None:
    """Return what the files of a tree add up to; None when that is nothing, or too much."""
    total_bytes = 0
    for entries, entry in enumerate(files_below(directory), start=1):
        if entry.is_file(follow_symlinks=False):
            total_bytes += entry.stat(follow_symlinks=False).st_size
        if total_bytes > bytes_max or entries > entries_max:
            return None
    return total_bytes or None


def sample(directory: Path, before_s: float) -> list[Path]:
    """Return names of files, spread over a tree, that we may read and nobody has just written."""
    names = []
    for entry in files_below(directory):
        stat = entry.stat(follow_symlinks=False)
        if entry.is_file(follow_symlinks=False) and stat.st_ctime < before_s:
            names.append(Path(entry.path).relative_to(directory))
    readable = [name for name in names if os.access(directory / name, os.R_OK)]
    return readable[:: max(1, len(readable) // COMPARED_FILES)]


# --- where the demonstration takes place ----------------------------------------------------------


def dedupfs_command() -> str:
    beside = Path(sys.executable).with_name("dedupfs")
    found = str(beside) if beside.exists() else shutil.which("dedupfs")
    if found is None:
        raise CommandError("dedupfs", 127, "the command is not installed: run ./dev demo")
    return found


def why_no_mount() -> str | None:
    """Return why this user can mount nothing here, or None when that can be tried."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return f"/dev/fuse cannot be opened ({exc.strerror})"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "fusermount3 is not installed"
    return None


def mounts_below(directory: Path) -> list[str]:
    """Return the mount points below a directory from the mount table, innermost first."""
    lines = Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()
    # proc(5): space, tab, newline and backslash are octal escapes.
    escaped = [line.split(" ")[1] for line in lines]
    points = [re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), e) for e in escaped]
    return [point for point in reversed(points) if Path(point).is_relative_to(directory)]


@contextmanager
def scratch_directory(room_bytes: float) -> Iterator[Path]:
    """Make a directory where there is room; unmount what is in it and remove it in the end."""
    for parent in dict.fromkeys((tempfile.gettempdir(), "/var/tmp", os.getcwd())):
        if os.access(parent, os.W_OK) and shutil.disk_usage(parent).free >= room_bytes:
            break
    else:
        raise OSError(f"no {human(room_bytes)} free in /tmp, /var/tmp or here; set TMPDIR")
    directory = Path(tempfile.mkdtemp(prefix="dedupfs-demo-", dir=parent)).resolve()
    try:
        yield directory
    finally:
        ignore_interrupts()  # a second Ctrl-C would leave a mount behind
        clear_away(directory)


def ignore_interrupts() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def clear_away(directory: Path) -> None:
    for point in mounts_below(directory):
        subprocess.run([dedupfs_command(), "umount", point], check=False, timeout=60)
    for point in mounts_below(directory):
        lazily = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        subprocess.run([*lazily, point], check=False, timeout=60)
    if mounts_below(directory):  # removing files through a mount is not what anybody wants
        say(f"still mounted, left as it is: {directory}")
    else:
        shutil.rmtree(directory)


@dataclass
class Row:
    """A line of the table: what plain copies take, and by how much the store grew."""

    what: str
    logical_bytes: int
    stored_bytes: int


@dataclass
class Stage:
    """The temporary directory and the store in it, and what was measured so far."""

    directory: Path
    scale: float
    rows: list[Row] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.directory / "store"

    def dedupfs(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """Run the command in the temporary directory; print its line, its output and its time."""
        line = shlex.join(["dedupfs", *arguments])
        say(f"$ {line}")
        started_s = time.perf_counter()
        code, output, errors = self._run(arguments)
        if code not in codes:
            raise CommandError(line, code, errors)
        *told, last = output.splitlines() or ["done"]
        for text in told:
            note(text)
        note(last, started_s)
        if code == FAILED_OUTSIDE:
            first, *more = errors.splitlines()
            note(f"{first}{f' (and {len(more)} more)' if more else ''}")
        return output

    def _run(self, arguments: tuple[str, ...]) -> tuple[int, str, str]:
        """Run it in a session of its own: Ctrl-C is ours, and a mount that begins must be seen."""
        with subprocess.Popen(
            [dedupfs_command(), *arguments],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            start_new_session=True,
        ) as process:
            try:
                output, errors = process.communicate()
            except KeyboardInterrupt:
                ignore_interrupts()
                if arguments[0] != "mount":
                    process.send_signal(signal.SIGINT)
                process.communicate()
                raise
        return process.returncode, output, errors

    def stored_hash(self, place: str) -> str:
        """Hash a file of a snapshot as `dedupfs cat` prints it, without any mount."""
        command = [dedupfs_command(), "cat", "store", place]
        digest = hashlib.sha256()
        with subprocess.Popen(command, cwd=self.directory, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            while block := process.stdout.read(MIB):
                digest.update(block)
        if process.returncode:
            raise CommandError(f"dedupfs cat store {place}", process.returncode, "")
        return digest.hexdigest()

    @contextmanager
    def row(self, what: str, logical_bytes: int) -> Iterator[Row]:
        """Measure by how much the store grows meanwhile."""
        before = disk_bytes(self.store)
        row = Row(what, logical_bytes, 0)
        yield row
        row.stored_bytes = disk_bytes(self.store) - before
        self.rows.append(row)
