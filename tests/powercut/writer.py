"""A program that works in a mount and notes each call before and after it.

    python -m tests.powercut.writer '{"mount": ..., "store": ..., "name": ..., "seed": ..., ...}'

It works in its own directory and in snapshots that it committed, says a byte on standard output
for each call that returned, and ends when the power (or its daemon) is gone, or after
so many steps. An error that is not the power's is noted with its name; the test then fails.
"""

from __future__ import annotations

import errno
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dedupfs.errors import DedupfsError
from dedupfs.maintenance.gc import collect
from dedupfs.namespace import live
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store
from tests.powercut.ledger import CUT, Ledger
from tests.powercut.patterns import pattern

LIVE_BYTES_MAX = 3 << 20
LARGE_BYTES = (20_000, 150_000, 400_000, 1_000_000, 3_200_000)
PIECE_BYTES = (4096, 30_000, 65_536, 262_144)
SNAPSHOTS_MAX = 3
POWER_ERRORS = (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)


class PowerGone(Exception):
    """Nothing can be written any more."""


class Results(dict[str, Any]):
    """What a call returned, for the ledger."""


class Hands:
    """Makes system calls and notes them. Paths are relative to the mount."""

    def __init__(self, mount: Path, store: Path, ledger: Ledger) -> None:
        self.mount = mount
        self.store = store
        self._ledger = ledger
        self.descriptors: dict[int, int] = {}
        self.paths: dict[int, str] = {}

    @contextmanager
    def noted(self, op: str, /, **arguments: Any) -> Iterator[tuple[int, Results]]:
        """Note a call around its being made."""
        number = self._ledger.begin(op, **arguments)
        results = Results()
        try:
            yield number, results
        except (OSError, DedupfsError) as exc:
            if self.power_is_gone():
                self._ledger.end(number, CUT)
                raise PowerGone from exc
            self._ledger.end(number, f"{type(exc).__name__}: {exc}")
            raise
        self._ledger.end(number, **results)
        os.write(1, b".")

    def power_is_gone(self) -> bool:
        """Whether the store's file system was shut down, or the daemon killed."""
        probe = self.store.parent / f"probe-{os.getpid()}"
        try:
            os.close(os.open(probe, os.O_CREAT | os.O_WRONLY, 0o600))
            os.unlink(probe)
            os.listdir(self.mount)
        except OSError as exc:
            return exc.errno in POWER_ERRORS
        return False

    def real(self, path: str) -> Path:
        return self.mount / path

    def open(self, path: str, *, create: int | None = None) -> int:
        flags = os.O_RDWR if create is None else os.O_RDWR | os.O_CREAT
        with self.noted("open", path=path, create=create) as (number, _):
            self.descriptors[number] = os.open(self.real(path), flags, create or 0)
        self.paths[number] = path
        return number

    def write(self, handle: int, start: int, length: int, seed: int | None = None) -> None:
        """Write a pattern: one of the call's own, unless there is a seed."""
        arguments = {"h": handle, "at": start, "bytes": length}
        number = self._ledger.peek()
        seed = number if seed is None else seed
        with self.noted("write", **arguments, seed=seed):
            data = pattern(seed, start, start + length)
            written = os.pwrite(self.descriptors[handle], data, start)
            assert written == length

    def truncate(self, handle: int, size: int) -> None:
        with self.noted("truncate", h=handle, size=size):
            os.ftruncate(self.descriptors[handle], size)

    def fsync(self, handle: int, *, data: bool = False) -> None:
        with self.noted("fsync", h=handle):
            (os.fdatasync if data else os.fsync)(self.descriptors[handle])

    def close(self, handle: int) -> None:
        with self.noted("close", h=handle):
            os.close(self.descriptors.pop(handle))
        self.paths.pop(handle)

    def size(self, handle: int) -> int:
        return os.fstat(self.descriptors[handle]).st_size

    def fsync_directory(self, path: str) -> None:
        with self.noted("fsyncdir", path=path):
            descriptor = os.open(self.real(path), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def path_call(self, op: str, call: Callable[[], object], path: str, **arguments: Any) -> None:
        with self.noted(op, path=path, **arguments):
            call()


class Writer:
    """Chooses what to do next."""

    def __init__(self, hands: Hands, name: str, view: str, rng: random.Random) -> None:
        self.hands = hands
        self.name = name
        self._view = view
        self._rng = rng
        self._serial = 0
        self._seeds: list[int] = []

    # --- what is there ---------------------------------------------------------------------------

    def tops(self) -> list[str]:
        names = os.listdir(self.hands.mount)
        return sorted(n for n in names if n == self.name or n.startswith(f"{self.name}-"))

    def look(self) -> tuple[list[str], list[str], int]:
        """Return directories, files, and the bytes in the writer's own directory."""
        directories, files, live_bytes = [], [], 0
        for top in self.tops():
            for path, _, names in os.walk(self.hands.real(top)):
                below = os.path.relpath(path, self.hands.mount)
                directories.append(below)
                for name in names:
                    status = os.lstat(os.path.join(path, name))
                    if status.st_mode & 0o170000 == 0o100000:
                        files.append(f"{below}/{name}")
                        live_bytes += status.st_size if top == self.name else 0
        return sorted(directories), sorted(files), live_bytes

    def fresh(self, directory: str) -> str:
        self._serial += 1
        return f"{directory}/n{self._rng.getrandbits(32):08x}"

    def own(self, paths: list[str], top: str | None = None) -> list[str]:
        wanted = top or self.name
        return [path for path in paths if path.split("/")[0] == wanted]

    # --- one thing after another -----------------------------------------------------------------

    def run(self, steps: int) -> None:
        if self.name not in self.tops():
            self.make_directory(self.name)
            self.hands.fsync_directory(self.name)
        for _ in range(steps):
            directories, files, live_bytes = self.look()
            if live_bytes > LIVE_BYTES_MAX:
                self.unlink(self._rng.choice(self.own(files)))
                continue
            action, weight_of_files = self._choose()
            if weight_of_files and not files:
                action = self.save_large
            action(directories, files)

    def _choose(self) -> tuple[Callable[[list[str], list[str]], None], bool]:
        table: list[tuple[int, Callable[[list[str], list[str]], None], bool]] = [
            (8, self.save_large, False),
            (10, self.save_small, False),
            (14, self.overwrite, True),
            (10, self.append, True),
            (6, self.truncate, True),
            (5, self.replace, True),
            (10, self.change_names, True),
            (8, self.change_attributes, True),
            (5, self.sync_something, True),
            (3, self.use_open_files, False),
            (2, self.commit, False),
            (1, self.remove_snapshot, False),
        ]
        weights = [weight for weight, _, _ in table]
        _, action, needs_files = self._rng.choices(table, weights)[0]
        return action, needs_files

    def maybe_sync_and_close(self, handle: int, likely: float) -> None:
        if self._rng.random() < likely:
            self.hands.fsync(handle, data=self._rng.random() < 0.3)
        if self._rng.random() < 0.85 or len(self.hands.descriptors) > 4:
            self.hands.close(handle)

    def directory_for_new(self, directories: list[str]) -> str:
        directory = self._rng.choice(directories)
        if self._rng.random() < 0.15 and directory.count("/") < 3:
            directory = self.fresh(directory)
            self.make_directory(directory)
        return directory

    def make_directory(self, path: str) -> None:
        mode = self._rng.choice([0o755, 0o700])
        real = self.hands.real(path)
        self.hands.path_call("mkdir", lambda: os.mkdir(real, mode), path, mode=mode)

    def save_large(self, directories: list[str], files: list[str]) -> None:
        """Write a new file in order; some repeat what another one holds."""
        path = self.fresh(self.directory_for_new(directories))
        handle = self.hands.open(path, create=0o644)
        length = self._rng.randrange(LARGE_BYTES[0], self._rng.choice(LARGE_BYTES[1:]))
        piece = self._rng.choice(PIECE_BYTES)
        seed = None
        if self._seeds and self._rng.random() < 0.4:
            seed = self._rng.choice(self._seeds)
        elif self._rng.random() < 0.7:
            seed = handle
            self._seeds.append(seed)
        for start in range(0, length, piece):
            self.hands.write(handle, start, min(piece, length - start), seed)
            if self._rng.random() < 0.02:
                self.hands.fsync(handle)
        self.maybe_sync_and_close(handle, 0.5)

    def save_small(self, directories: list[str], files: list[str]) -> None:
        path = self.fresh(self.directory_for_new(directories))
        handle = self.hands.open(path, create=0o600)
        self.hands.write(handle, 0, self._rng.randrange(1, 8000))
        self.maybe_sync_and_close(handle, 0.4)

    def overwrite(self, directories: list[str], files: list[str]) -> None:
        handle = self.hands.open(self._rng.choice(files))
        for _ in range(self._rng.randrange(1, 5)):
            start = self._rng.randrange(self.hands.size(handle) + 1)
            seed = 0 if self._rng.random() < 0.05 else None
            self.hands.write(handle, start, self._rng.randrange(1, 20_000), seed)
        self.maybe_sync_and_close(handle, 0.4)

    def append(self, directories: list[str], files: list[str]) -> None:
        handle = self.hands.open(self._rng.choice(files))
        for _ in range(self._rng.randrange(1, 5)):
            gap = self._rng.choice([0, 0, 0, 0, 5000, 100_000])
            start = self.hands.size(handle) + gap
            self.hands.write(handle, start, self._rng.randrange(1, 12_000))
        self.maybe_sync_and_close(handle, 0.4)

    def truncate(self, directories: list[str], files: list[str]) -> None:
        handle = self.hands.open(self._rng.choice(files))
        size = self.hands.size(handle)
        self.hands.truncate(
            handle, self._rng.choice([0, size // 2, size * 3 // 2, size - size % 7])
        )
        if self._rng.random() < 0.5:
            self.hands.write(handle, self.hands.size(handle), self._rng.randrange(1, 9000))
        self.maybe_sync_and_close(handle, 0.4)

    def replace(self, directories: list[str], files: list[str]) -> None:
        """Save as editors do: write a new file, sync it, rename it over the old one."""
        path = self._rng.choice(files)
        directory = path.rpartition("/")[0]
        temporary = self.fresh(directory)
        handle = self.hands.open(temporary, create=0o644)
        self.hands.write(handle, 0, self._rng.randrange(1, 60_000))
        self.hands.fsync(handle)
        self.hands.close(handle)
        self.rename(temporary, path)
        if self._rng.random() < 0.5:
            self.hands.fsync_directory(directory)

    def change_names(self, directories: list[str], files: list[str]) -> None:
        path = self._rng.choice(files)
        top = path.split("/")[0]
        mine = self.own(directories, top)
        target = self.fresh(self._rng.choice(mine))
        real, real_target = self.hands.real(path), self.hands.real(target)
        match self._rng.randrange(8):
            case 0 | 1:
                self.rename(path, target)
            case 2:
                self.rename(path, self._rng.choice(self.own(files, top)))
            case 3:
                self.hands.path_call("link", lambda: os.link(real, real_target), path, to=target)
            case 4:
                self.unlink(path)
            case 5:
                self.hands.path_call(
                    "symlink", lambda: os.symlink(path, real_target), target, target=path
                )
            case 6:
                self.hands.path_call(
                    "mkfifo", lambda: os.mkfifo(real_target, 0o600), target, mode=0o600
                )
            case _:
                self._change_directories(mine)

    def _change_directories(self, directories: list[str]) -> None:
        if len(directories) < 2:
            return self.make_directory(self.fresh(directories[0]))
        path = self._rng.choice(directories[1:])
        real = self.hands.real(path)
        if not os.listdir(real):
            return self.hands.path_call("rmdir", lambda: os.rmdir(real), path)
        outside = [d for d in directories if d != path and not d.startswith(f"{path}/")]
        return self.rename(path, self.fresh(self._rng.choice(outside)))

    def rename(self, path: str, to: str) -> None:
        real, real_to = self.hands.real(path), self.hands.real(to)
        self.hands.path_call("rename", lambda: os.rename(real, real_to), path, to=to)

    def unlink(self, path: str) -> None:
        self.hands.path_call("unlink", lambda: os.unlink(self.hands.real(path)), path)

    def change_attributes(self, directories: list[str], files: list[str]) -> None:
        path = self._rng.choice(files + directories)
        real = self.hands.real(path)
        name = f"user.{self._rng.choice('abc')}"
        value = f"{self._rng.getrandbits(64):x}" * self._rng.choice([1, 1, 30])
        match self._rng.randrange(4):
            case 0:
                mode = self._rng.choice([0o755, 0o750, 0o700])
                self.hands.path_call("chmod", lambda: os.chmod(real, mode), path, mode=mode)
            case 1 if path in files:
                ns = self._rng.randrange(1 << 60)
                self.hands.path_call(
                    "utime", lambda: os.utime(real, ns=(ns, ns)), path, mtime_ns=ns
                )
            case 2 if name in os.listxattr(real):
                self.hands.path_call(
                    "removexattr", lambda: os.removexattr(real, name), path, name=name
                )
            case _:
                self.hands.path_call(
                    "setxattr",
                    lambda: os.setxattr(real, name, value.encode()),
                    path,
                    name=name,
                    value=value,
                )

    def sync_something(self, directories: list[str], files: list[str]) -> None:
        if self._rng.random() < 0.5:
            return self.hands.fsync_directory(self._rng.choice(directories))
        handle = self.hands.open(self._rng.choice(files))
        self.hands.fsync(handle)
        return self.hands.close(handle)

    def use_open_files(self, directories: list[str], files: list[str]) -> None:
        """Write through a descriptor that has been open for a while, whatever its name is now."""
        for handle in list(self.hands.descriptors):
            self.hands.write(handle, self.hands.size(handle), self._rng.randrange(1, 20_000))
            self.maybe_sync_and_close(handle, 0.3)

    # --- snapshots -------------------------------------------------------------------------------

    def commit(self, directories: list[str], files: list[str]) -> None:
        if len(self.tops()) > SNAPSHOTS_MAX:
            return self.remove_snapshot(directories, files)
        path = self._rng.choice([self.name, self._rng.choice(directories)])
        name = f"{self.name}-{self._rng.getrandbits(40):x}"
        socket = (
            self.hands.store / live.RUN_DIRECTORY / (live.stem(self._view) + live.SOCKET_SUFFIX)
        )
        request = live.Commit(name, path=path.encode())
        return self.hands.path_call(
            "commit", lambda: live.ask(socket, request, timeout_s=60), path, name=name
        )

    def remove_snapshot(self, directories: list[str], files: list[str]) -> None:
        with Store.open(self.hands.store) as store:
            catalog = [info.name for info in SnapshotCatalog(store).list()]
            mine = [name for name in catalog if name.startswith(f"{self.name}-")]
            if not mine:
                return
            name = self._rng.choice(mine)
            for handle in list(self.hands.descriptors):
                self.hands.close(handle)
            with self.hands.noted("remove_snapshot", name=name) as (_, results):
                SnapshotCatalog(store).remove([name])
                results["stays"] = name in os.listdir(self.hands.mount)
            if self._rng.random() < 0.5:
                with self.hands.noted("gc"):
                    collect(store)


def main(said: dict[str, Any]) -> None:
    os.umask(0)
    hands = Hands(
        Path(said["mount"]), Path(said["store"]), Ledger(Path(said["ledger"]), said["number"])
    )
    writer = Writer(hands, said["name"], said["view"], random.Random(said["seed"]))
    try:
        writer.run(said["steps"])
    except PowerGone:
        pass
    except OSError:
        if not hands.power_is_gone():
            raise


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
