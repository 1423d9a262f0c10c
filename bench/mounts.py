"""What does working in a mount cost, beside the native file system and other FUSE ones?

Every mount is a fresh one, so the FUSE side of the page cache is cold and the backing file warm.
fuse-overlayfs and bindfs take part where they are installed.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from bench.datasets import Scale, noise_file, small_tree
from bench.harness import (
    Report,
    Result,
    Variant,
    compare,
    dedupfs,
    disk_bytes,
    mounted,
    remove,
    run,
)

FILE_BYTES = 512 << 20
WRITE_BYTES = 4096


def measure(report: Report, directory: Path, scale: Scale, rounds: int) -> None:
    """Answer all questions of this script."""
    source = directory / "source"
    source.mkdir()
    noise_file(source / "model.bin", scale.bytes(FILE_BYTES))
    _Files(directory, source, "model").measure_large(report, rounds)
    remove(source)
    tree = small_tree(directory / "tree", scale.count(12_000))
    files = _Files(directory, tree, "tree")
    files.measure_tree(report, rounds)
    files.measure_untar(report, rounds)
    _new_views(report, directory, tree, scale, rounds)


class _Files:
    """One directory, seen natively, through dedupfs and through other file systems."""

    def __init__(self, directory: Path, source: Path, snapshot: str) -> None:
        self.directory = directory
        self.source = source
        self.snapshot = snapshot
        self.store = directory / "store"
        self.mountpoint = directory / "mnt"
        self.mountpoint.mkdir(exist_ok=True)
        self.stack = ExitStack()
        dedupfs("init", self.store)
        dedupfs("import", self.store, source, snapshot)

    def close(self) -> None:
        for path in (self.store, self.directory / "upper", self.directory / "work"):
            remove(path)

    # --- ways to see the directory ----------------------------------------------------------------

    @contextmanager
    def native(self) -> Iterator[Path]:
        yield self.source

    @contextmanager
    def dedupfs(self) -> Iterator[Path]:
        with mounted(
            self.store, self.mountpoint, "--snapshot", self.snapshot, "--ephemeral"
        ) as path:
            yield path

    @contextmanager
    def bindfs(self) -> Iterator[Path]:
        run("bindfs", self.source, self.mountpoint)
        try:
            yield self.mountpoint
        finally:
            _unmount(self.mountpoint)

    @contextmanager
    def overlay(self) -> Iterator[Path]:
        upper, work = self.directory / "upper", self.directory / "work"
        for path in (upper, work):
            remove(path)
            path.mkdir()
        options = f"lowerdir={self.source},upperdir={upper},workdir={work}"
        run("fuse-overlayfs", "-o", options, self.mountpoint)
        try:
            yield self.mountpoint
        finally:
            _unmount(self.mountpoint)
            remove(upper)

    def ways(self) -> dict[str, Callable[[], AbstractContextManager[Path]]]:
        found: dict[str, Callable[[], AbstractContextManager[Path]]] = {
            "native": self.native,
            "dedupfs": self.dedupfs,
        }
        if shutil.which("fuse-overlayfs"):
            found["fuse-overlayfs"] = self.overlay
        if shutil.which("bindfs"):
            found["bindfs"] = self.bindfs
        return found

    def variants(self, work: Callable[[Path], float | None], leave_out: str = "") -> list[Variant]:
        """Return one variant for each way, which does ``work`` below a fresh mount."""
        return [
            self._variant(name, way, work) for name, way in self.ways().items() if name != leave_out
        ]

    def _variant(
        self,
        name: str,
        way: Callable[[], AbstractContextManager[Path]],
        work: Callable[[Path], float | None],
    ) -> Variant:
        stack = ExitStack()
        seen: list[Path] = []

        def prepare() -> None:
            os.sync()
            seen[:] = [stack.enter_context(way())]

        return Variant(name, lambda: work(seen[0]), prepare, stack.close)

    # --- questions --------------------------------------------------------------------------------

    def measure_large(self, report: Report, rounds: int) -> None:
        size = (self.source / "model.bin").stat().st_size
        note = f"{size / 1e6:.0f} MB, fresh mount"

        def read(top: Path) -> float:
            started = time.perf_counter()
            _read(top / "model.bin")
            return size / (time.perf_counter() - started) / 1e9

        read(self.source)
        report.add(compare("sequential read", "GB/s", self.variants(read), rounds, note))
        self._measure_overwrite(report, rounds, size)
        self.close()

    def _measure_overwrite(self, report: Report, rounds: int, size: int) -> None:
        """Of the native file system it is a copy that is changed: that is how it isolates."""
        copy = self.directory / "copy.bin"
        grown: dict[str, list[float]] = {}

        def native(_top: Path) -> float:
            started = time.perf_counter()
            shutil.copyfile(self.source / "model.bin", copy)
            _overwrite(copy, size)
            elapsed = time.perf_counter() - started
            grown.setdefault("native: copy, then write", []).append(float(disk_bytes_of(copy)))
            copy.unlink()
            return elapsed * 1000

        def isolated(name: str, place: Path) -> Callable[[Path], float]:
            def work(top: Path) -> float:
                before = disk_bytes(place)
                started = time.perf_counter()
                _overwrite(top / "model.bin", size)
                elapsed = time.perf_counter() - started
                grown.setdefault(name, []).append(float(disk_bytes(place) - before))
                return elapsed * 1000

            return work

        variants = [
            self._variant("native: copy, then write", self.native, native),
            self._variant("dedupfs", self.dedupfs, isolated("dedupfs", self.store)),
        ]
        if shutil.which("fuse-overlayfs"):
            place = self.directory / "upper"
            place.mkdir(exist_ok=True)
            work = isolated("fuse-overlayfs", place)
            variants.append(self._variant("fuse-overlayfs", self.overlay, work))
        note = f"{WRITE_BYTES} B + fsync, first write into {size / 1e6:.0f} MB, isolated"
        report.add(compare("overwrite in a large file: time", "ms", variants, rounds, note))
        order = [variant.name for variant in variants]
        values = {name: grown[name] for name in order}
        report.add(Result("overwrite in a large file: disk grown", "B", values, note))

    def measure_tree(self, report: Report, rounds: int) -> None:
        count = sum(1 for _ in self.source.rglob("*"))
        note = f"{count} entries, fresh mount"

        def find(top: Path) -> None:
            run("find", top, "-size", "+1000000k")

        def find_again(top: Path) -> float:
            find(top)
            started = time.perf_counter()
            find(top)
            return time.perf_counter() - started

        def read_all(top: Path) -> None:
            for directory, _names, files in os.walk(top):
                for name in files:
                    with open(os.path.join(directory, name), "rb", buffering=0) as file:
                        file.readall()

        find(self.source)
        report.add(compare("find with stat, first", "s", self.variants(find), rounds, note))
        report.add(compare("find with stat, again", "s", self.variants(find_again), rounds, note))
        report.add(compare("read all small files", "s", self.variants(read_all), rounds, note))

    def measure_untar(self, report: Report, rounds: int) -> None:
        archive = self.directory / "tree.tar"
        run("tar", "-C", self.source, "-cf", archive, ".")
        plain = self.directory / "plain"

        def untar(top: Path) -> float:
            target = (plain if top == self.source else top) / "untarred"
            target.mkdir(parents=True)
            started = time.perf_counter()
            run("tar", "-C", target, "-xf", archive)
            elapsed = time.perf_counter() - started
            remove(plain)
            return elapsed

        count = sum(1 for path in self.source.rglob("*") if path.is_file())
        variants = self.variants(untar, leave_out="bindfs")
        report.add(compare("untar", "s", variants, rounds, f"{count} files"))
        archive.unlink()
        self.close()


# --- single steps ---------------------------------------------------------------------------------


def _unmount(mountpoint: Path) -> None:
    run("umount" if os.geteuid() == 0 else "fusermount3", *_unmount_options(), mountpoint)


def _unmount_options() -> tuple[str, ...]:
    return () if os.geteuid() == 0 else ("-u",)


def _read(path: Path) -> None:
    buffer = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _overwrite(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, os.urandom(WRITE_BYTES), size // 2 // WRITE_BYTES * WRITE_BYTES)
        os.fsync(fd)
    finally:
        os.close(fd)


def disk_bytes_of(path: Path) -> int:
    return path.stat().st_blocks * 512


def _new_views(report: Report, directory: Path, tree: Path, scale: Scale, rounds: int) -> None:
    """Is a new view as quick over a large store as over a small one? A copy is not."""
    store, mountpoint, copy = directory / "store", directory / "mnt", directory / "copy"
    few = small_tree(directory / "few", scale.count(100), seed=2)
    many = tree.rename(directory / "many")
    dedupfs("init", store)
    dedupfs("import", store, few, "few")
    dedupfs("import", store, many, "many")
    names = iter(range(1_000))

    def view_of(snapshot: str) -> Variant:
        def make() -> None:
            view = f"view{next(names)}"
            dedupfs("mount", store, mountpoint, "--snapshot", snapshot, "--view", view)
            os.listdir(mountpoint)

        return Variant(
            f"dedupfs mount, {snapshot}", make, finish=lambda: dedupfs("umount", mountpoint)
        )

    def copy_of(source: Path) -> Variant:
        def make() -> None:
            run("cp", "-a", source, copy)

        return Variant(f"cp -a, {source.name}", make, finish=lambda: remove(copy))

    variants = [view_of("few"), view_of("many"), copy_of(few), copy_of(many)]
    counts = [sum(path.is_file() for path in top.rglob("*")) for top in (few, many)]
    note = f"few: {counts[0]} files, many: {counts[1]}; the command's start-up included"
    report.add(compare("a new writable view", "s", variants, rounds, note))
    for path in (store, few, many):
        remove(path)
