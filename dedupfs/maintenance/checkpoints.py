"""Pruning checkpoint directories, in a mount or anywhere: large files go, small evidence stays.

Knows file descriptors and the rules of ``retention.py``; no store and no view. Each subdirectory of
one directory is a candidate. Nothing is reached through a symbolic link or in another file system.
"""

import fnmatch
import json
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.errors import NotFoundError, SourceError, UsageError
from dedupfs.maintenance.retention import Candidate, Decision, Moment, Policy, decide, step_in_name

EVIDENCE = (
    *("*.py", "*.pyi", "*.sh", "*.ipynb", "*.c", "*.cc", "*.cpp", "*.cu", "*.h", "*.rs", "*.patch"),
    *("*.json", "*.jsonl", "*.yaml", "*.yml", "*.toml", "*.ini", "*.cfg", "*.xml"),
    *("*.md", "*.rst", "*.txt", "*.csv", "*.tsv", "*.log", "*.html", "*.png", "*.svg", "*.pdf"),
    *("README*", "LICENSE*", "COPYING*", "Makefile", "Dockerfile*", "events.out.tfevents*"),
)
"""Sources, manifests, summaries: what tells how a checkpoint came about."""

_DEPTH_MAX = 64
_METRICS_BYTES_MAX = 64 << 20
_BLOCK_BYTES = 512  # the unit of st_blocks: inode(7)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

OnProblem = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class File:
    """Anything but a directory, as it was seen. ``path`` is below its checkpoint."""

    path: str
    identity: tuple[int, int]
    size: int
    disk_bytes: int = field(compare=False)  # a fold in a mount finds holes
    mtime_ns: int
    names: int
    is_symlink: bool
    protected: bool


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One subdirectory: its files, and the numbers that its metrics file tells."""

    name: str
    files: tuple[File, ...]
    tags: Mapping[str, str]
    linked: bool = False

    @property
    def prunable(self) -> list[File]:
        """The files that go with it."""
        return [file for file in self.files if not file.protected]

    def candidate(self) -> Candidate:
        """Return what rules know of it: as old as the newest file that could go.

        A symbolic link is often made later, and says nothing of what it leads to.
        """
        real = [file for file in self.prunable if not file.is_symlink] or self.prunable
        newest_ns = max(file.mtime_ns for file in real)
        return Candidate(self.name, newest_ns, 0, self.tags, self.linked)


@dataclass(frozen=True, slots=True)
class Options:
    """What is looked at: directories that match ``patterns`` (none: those with a number in their
    name), files but those that match ``protected``, metrics in a JSON file of each.
    """

    patterns: Sequence[str] = ()
    protected: Sequence[str] = EVIDENCE
    metrics_name: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of each checkpoint; those that go, the oldest first."""

    decisions: Sequence[Decision]
    going: Sequence[Checkpoint]


def freed_bytes(checkpoints: Sequence[Checkpoint]) -> int:
    """Return the blocks of all files that go with their last name, each counted once.

    In a mount of dedupfs less may come back: what snapshots, or other files, share stays.
    """
    names: dict[tuple[int, int], int] = {}
    freed = 0
    for checkpoint in checkpoints:
        for file in checkpoint.prunable:
            names[file.identity] = names.get(file.identity, 0) + 1
            if names[file.identity] == file.names:
                freed += file.disk_bytes
    return freed


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    """Give a descriptor of the directory that holds checkpoints.

    Raises:
        UsageError: it is none, or it is a store or lies in one.
    """
    real = Path(os.path.realpath(directory))
    for place in (real, *real.parents):
        if (place / "dedupfs.json").is_file() and (place / "packs").is_dir():
            raise UsageError(f"{directory} is a store or in one; its snapshots: dedupfs prune")
    try:
        descriptor = os.open(real, _DIRECTORY)
    except OSError as exc:
        raise UsageError(f"cannot open {directory}: {exc.strerror}") from exc
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def plan(top: int, policy: Policy, moment: Moment, options: Options, on_problem: OnProblem) -> Plan:
    """Say what would become of the checkpoints in the directory ``top``.

    One of which nothing could go, for it was pruned before, is none. ``on_problem`` hears of those
    that cannot be read: they stay, and no rule counts them.

    Raises:
        UsageError: see ``retention.decide``. NotFoundError: a pattern matches nothing.
    """
    found = {
        checkpoint.name: checkpoint
        for checkpoint in _find(top, options, on_problem)
        if checkpoint.prunable
    }
    decisions = decide(policy, [one.candidate() for one in found.values()], moment)
    going = [one.candidate for one in decisions if not one.stays]
    going.sort(key=lambda candidate: candidate.age_key)
    return Plan(decisions, [found[candidate.name] for candidate in going])


def remove(top: int, checkpoint: Checkpoint, options: Options) -> None:
    """Remove the files of a checkpoint that are not protected, and directories left empty by that.

    Raises:
        SourceError: it has changed since it was looked at, and stays; or not all could be removed.
    """
    wanted = {file.path: file for file in checkpoint.prunable}
    try:
        with _opened_below(top, checkpoint.name) as fd:
            if fd is None or _files(fd, options) != checkpoint.files:
                raise SourceError("it was changed meanwhile, so it stays: prune again")
            _remove_below(fd, "", wanted, _directories_of(wanted))
    except OSError as exc:
        raise SourceError(f"not all of it could be removed: {exc.strerror}") from exc
    if len(wanted) == len(checkpoint.files):
        with suppress(OSError):  # something else is there: a mount, or what came meanwhile
            os.rmdir(checkpoint.name, dir_fd=top)


# --- looking --------------------------------------------------------------------------------------


def _find(top: int, options: Options, on_problem: OnProblem) -> Iterator[Checkpoint]:
    names = sorted(os.listdir(top))
    for pattern in options.patterns:
        if not fnmatch.filter(names, pattern):
            raise NotFoundError(f"no directory is called, or matches, {pattern!r}")
    linked = _linked(top, names)
    for name in names:
        if not _is_considered(name, options.patterns):
            continue
        try:
            with _opened_below(top, name) as fd:
                if fd is None:
                    continue
                files = _files(fd, options)
                tags = _metrics(fd, options.metrics_name) if options.metrics_name else {}
        except OSError as exc:
            on_problem(name, exc.strerror or str(exc))
            continue
        except SourceError as exc:
            on_problem(name, str(exc))
            continue
        yield Checkpoint(name, files, tags, linked=name in linked)


def _is_considered(name: str, patterns: Sequence[str]) -> bool:
    if patterns:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    return not name.startswith(".") and step_in_name(name) is not None


def _linked(top: int, names: Sequence[str]) -> set[str]:
    """Return the names to, or into, which symbolic links beside them lead, as ``latest`` does."""
    here = os.path.realpath(f"/proc/self/fd/{top}")
    found = set()
    for name in names:
        path = os.path.join(here, name)
        if os.path.islink(path):
            target = os.path.relpath(os.path.realpath(path), here)
            found.add(target.partition("/")[0])
    return found


@contextmanager
def _opened_below(top: int, name: str) -> Iterator[int | None]:
    """Give a descriptor of a subdirectory of the same file system; None if there is none."""
    status = os.stat(name, dir_fd=top, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_dev != os.fstat(top).st_dev:
        yield None
        return
    fd = os.open(name, _DIRECTORY, dir_fd=top)
    try:
        yield fd if os.path.samestat(os.fstat(fd), status) else None
    finally:
        os.close(fd)


def _files(fd: int, options: Options) -> tuple[File, ...]:
    return tuple(_files_below(fd, "", options.protected, 0))


def _files_below(fd: int, prefix: str, protected: Sequence[str], depth: int) -> Iterator[File]:
    if depth > _DEPTH_MAX:
        raise SourceError(f"directories deeper than {_DEPTH_MAX}")
    for name in sorted(os.listdir(fd)):
        path = prefix + name
        is_protected = _matches(path, protected)
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            yield File(
                path,
                (status.st_dev, status.st_ino),
                status.st_size,
                status.st_blocks * _BLOCK_BYTES,
                status.st_mtime_ns,
                status.st_nlink,
                stat.S_ISLNK(status.st_mode),
                is_protected,
            )
            continue
        with _opened_below(fd, name) as below:
            if below is not None:  # not what is mounted there
                inside = ("*",) if is_protected else protected
                yield from _files_below(below, path + "/", inside, depth + 1)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether the name matches a pattern, or the path one with a slash."""
    name = path.rpartition("/")[2]
    return any(
        fnmatch.fnmatchcase(path if "/" in pattern else name, pattern) for pattern in patterns
    )


def _metrics(fd: int, name: str) -> dict[str, str]:
    """Return the plain values of a JSON file, those of nested ones under ``outer.inner``.

    Of a list, as a log is, each value is the last one that was told. No such file, no values.
    """
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
    except FileNotFoundError:
        return {}
    with open(descriptor, "rb") as file:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        data = file.read(_METRICS_BYTES_MAX) if is_file else b""
    try:
        return dict(_flat(json.loads(data), ""))
    except (ValueError, RecursionError) as exc:
        raise SourceError(f"{name} is no JSON: {exc}") from exc


def _flat(value: object, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _flat(inner, prefix)
    elif value is not None and not isinstance(value, bool):
        yield prefix, str(value)


# --- removing -------------------------------------------------------------------------------------


def _directories_of(paths: Iterable[str]) -> set[str]:
    """Return every directory on the way to one of ``paths``."""
    found = set()
    for path in paths:
        parent = path.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return found


def _remove_below(
    fd: int, prefix: str, wanted: Mapping[str, File], directories: Collection[str]
) -> None:
    """Remove the files ``wanted`` below a directory, and those of ``directories`` then empty."""
    for name in sorted(os.listdir(fd)):
        path = prefix + name
        file = wanted.get(path)
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            if path not in directories:
                continue
            with _opened_below(fd, name) as below:
                if below is not None:
                    _remove_below(below, path + "/", wanted, directories)
            with suppress(OSError):  # what is protected in there stays, and so does it
                os.rmdir(name, dir_fd=fd)
        elif file is not None and _is_same(file, status):
            os.unlink(name, dir_fd=fd)


def _is_same(file: File, status: os.stat_result) -> bool:
    seen = (status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns
    return seen == (file.identity, file.size, file.mtime_ns)
