"""Running programs, and looking at what they leave: disk, mounts, caches. Times nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

COMMAND_SECONDS_MAX = 900
PREFIX = "dedupfs-bench-"
"""Of the names of the directories that runs work in."""
ROOT = Path(__file__).resolve().parent.parent


class BenchError(Exception):
    """Something could not be measured; the message is the reason that the table shows."""


_OUR_PATHS = re.compile(rf"\S*{PREFIX}[^/\s]*/(\S*)")


def reason(error: Exception) -> str:
    """Return what an error says, without the run's own directory: lines of two runs are alike."""
    said = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return _OUR_PATHS.sub(r"\1", said)


def run(
    *command: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    accept: tuple[int, ...] = (0,),
) -> str:
    """Run a command to its end and return what it printed."""
    words = [str(part) for part in command]
    try:
        done = subprocess.run(
            words,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_SECONDS_MAX,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise BenchError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{words[0]} took more than {COMMAND_SECONDS_MAX} s") from error
    if done.returncode not in accept:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        said = [line for line in lines if any(map(str.isalnum, line))]  # not a frame around it
        last = said[-1] if said else "said nothing"
        raise BenchError(f"{' '.join(words[:2])}: exit code {done.returncode}: {last}"[:200])
    return done.stdout


def dedupfs(*arguments: str | Path) -> str:
    """Run the dedupfs of this checkout as a command of its own, start-up included."""
    return run(sys.executable, "-m", "dedupfs", *arguments)


def is_root() -> bool:
    return os.geteuid() == 0


# --- caches ---------------------------------------------------------------------------------------

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def why_not_cold() -> str:
    """Return why the kernel's caches cannot be dropped here, or nothing."""
    if not is_root():
        return "cold needs root, to drop the kernel's caches"
    return "" if os.access(_DROP_CACHES, os.W_OK) else f"{_DROP_CACHES} is read-only here"


def drop_caches() -> None:
    if why := why_not_cold():
        raise BenchError(why)
    os.sync()
    _DROP_CACHES.write_text("3\n")


# --- disk -----------------------------------------------------------------------------------------


def disk_bytes(path: Path) -> int:
    """Return the blocks that the file system has given out below ``path``."""
    return _census(path)[0]


def inode_count(path: Path) -> int:
    """Return how many inodes the file system keeps for ``path``."""
    return _census(path)[1]


def _census(top: Path) -> tuple[int, int]:
    seen: set[tuple[int, int]] = set()
    total = 0
    for directory, _names, files in os.walk(top):
        for name in [".", *files]:
            try:
                found = os.lstat(os.path.join(directory, name))
            except FileNotFoundError:
                continue  # a living store replaces files while it is looked at
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_blocks * 512
    return total, len(seen)


def used_bytes(path: Path) -> int:
    """Return what the file system that holds ``path`` has given out, all in all."""
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def remove(path: Path) -> None:
    """Remove a file or tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# --- mounts ---------------------------------------------------------------------------------------


def unmount(mountpoint: Path) -> None:
    if is_root():
        run("umount", mountpoint)
    else:
        run("fusermount3", "-u", mountpoint)


def mounts_below(directory: Path) -> list[tuple[Path, str]]:
    """Return mount points below ``directory`` and their types, those made last first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _dash, rest = line.partition(" - ")
        path = fields.split()[4].encode().decode("unicode_escape")
        if path.startswith(f"{directory}/"):
            found.append((Path(path), rest.split()[0]))
    return found[::-1]


def loop_devices_of(directory: Path) -> list[Path]:
    """Return the loop devices whose images lie below ``directory``."""
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            image = file.read_text()
        except OSError:
            continue  # it was detached meanwhile
        if image.startswith(f"{directory}/"):
            found.append(Path("/dev") / file.parent.parent.name)
    return found


def sweep(directory: Path) -> None:
    """Unmount all below ``directory``, detach its loop devices and remove it."""
    for mountpoint, kind in mounts_below(directory):
        try:
            if kind == "fuse.dedupfs":
                dedupfs("umount", mountpoint)
            else:
                unmount(mountpoint)
        except BenchError as error:
            print(f"bench: {mountpoint}: {error}; detaching it", file=sys.stderr)
            lazily = ("umount", "-l") if is_root() else ("fusermount3", "-uz")
            subprocess.run([*lazily, str(mountpoint)], check=False, capture_output=True)
    for device in loop_devices_of(directory):  # of a run that ended before it was mounted
        subprocess.run(["losetup", "--detach", str(device)], check=False, capture_output=True)
    remove(directory)
