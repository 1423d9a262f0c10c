"""What of a directory is imported: patterns, .gitignore files, caches, a list of names.

A walk asks for each directory which of its names to visit; what is not selected is neither opened
nor entered. Reads .gitignore files and the tags of caches, and knows no store. Source: docs/cli.md,
"import"; gitignore(5); bford.info/cachedir.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.errors import UsageError
from dedupfs.transfer.metadata import object_at, open_source
from dedupfs.transfer.patterns import Patterns, lines_of
from dedupfs.transfer.report import Problems
from dedupfs.transfer.walk import Level

GIT = b".git"
GITIGNORE = b".gitignore"
GIT_EXCLUDE = b".git/info/exclude"
CACHE_TAG = b"CACHEDIR.TAG"
CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
PATTERN_FILE_BYTES_MAX = 16 << 20


class Listed:
    """A tree of the names to import: each with what is listed below it."""

    __slots__ = ("below", "is_named")

    def __init__(self) -> None:
        self.below: dict[bytes, Listed] = {}
        self.is_named = False
        """Whether it stands in the list itself, and not only something below it."""

    def add(self, path: bytes) -> None:
        """Add a path from the top of the import.

        Raises:
            UsageError: it leads out of the directory.
        """
        node = self
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if path.startswith(b"/") or b".." in parts:
            raise UsageError(f"{os.fsdecode(path)!r} is no path below the directory to import")
        for part in parts:
            node = node.below.setdefault(part, Listed())
        node.is_named = True


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a directory is imported. As it is made without arguments: everything."""

    patterns: Patterns = field(default_factory=lambda: Patterns(()))
    gitignore: bool = False
    exclude_caches: bool = False
    listed: Listed | None = None

    def __bool__(self) -> bool:
        """Whether it leaves out anything."""
        return bool(
            self.patterns or self.gitignore or self.exclude_caches or self.listed is not None
        )


Rules = tuple[tuple[Patterns, bytes, int], ...]
"""Patterns, each with what to put in front of a path from the top, after so many bytes of it are
taken away: the path from where they apply. Those that win come first.
"""


@dataclass(frozen=True, slots=True)
class Scope:
    """What holds in one directory, however deep: it has no path, which would grow with the depth.

    ``listed``: None where all is taken.
    """

    ignores: Rules
    listed: Listed | None
    is_whole: bool
    """Whether ``listed`` only says what else is in the list, since a directory above is in it."""
    in_git: bool = False


class Selector:
    """A selection at work in one walk."""

    def __init__(self, selection: Selection, top: Path, problems: Problems) -> None:
        self._selection = selection
        self._top = top
        self._problems = problems
        self._met: set[bytes] = set()
        self._left_out: set[bytes] = set()

    def names(self, level: Level) -> list[bytes]:
        """Return the names in a directory to visit, in order."""
        with os.scandir(level.fd) as found:
            return sorted([os.fsencode(entry.name) for entry in self.select(level, found)])

    def select(
        self, level: Level, found: Iterable["os.DirEntry[str]"]
    ) -> Iterator["os.DirEntry[str]"]:
        """Yield what of a directory, which has just been opened, is to be visited."""
        entries = {os.fsencode(entry.name): entry for entry in found}
        path = level.path + b"/" if level.parent is not None else b""
        level.scope = scope = self._scope(level, path, entries)
        if self._selection.exclude_caches and CACHE_TAG in entries and self._is_cache(level):
            entries = {CACHE_TAG: entries[CACHE_TAG]}
        rules = [(patterns, front + path[start:]) for patterns, front, start in scope.ignores]
        for name, entry in entries.items():
            if self._takes(scope, path, rules, name, entry):
                yield entry

    def missing(self) -> list[bytes]:
        """Return what is in the list and was neither met nor left out, after the walk."""
        if self._selection.listed is None:
            return []
        return sorted(self._missing(b"", self._selection.listed))

    def _missing(self, top: bytes, node: Listed) -> Iterator[bytes]:
        waiting = [(top, node)]
        while waiting:
            prefix, node = waiting.pop()
            for name, below in node.below.items():
                path = prefix + name
                if path not in self._left_out:
                    if below.is_named and path not in self._met:
                        yield path
                    waiting.append((path + b"/", below))

    def _takes(
        self,
        scope: Scope,
        path: bytes,
        rules: list[tuple[Patterns, bytes]],
        name: bytes,
        entry: "os.DirEntry[str]",
    ) -> bool:
        listed = scope.listed.below.get(name) if scope.listed is not None else None
        if not scope.is_whole and listed is None:
            return False
        if self._excludes(path, rules, name, entry):
            if listed is not None:
                self._left_out.add(path + name)
            return False
        if listed is not None:
            if not scope.is_whole and not listed.is_named and not _is_directory(entry):
                return False  # what is listed below it cannot be there
            self._met.add(path + name)
        return True

    def _excludes(
        self,
        path: bytes,
        rules: list[tuple[Patterns, bytes]],
        name: bytes,
        entry: "os.DirEntry[str]",
    ) -> bool:
        is_directory = _is_directory(entry)
        said = self._selection.patterns.excludes(name, path, is_directory)
        if said is not None:
            return said
        if self._selection.gitignore and name == GIT:
            return True
        for patterns, prefix in rules:
            said = patterns.excludes(name, prefix, is_directory)
            if said is not None:
                return said
        return False

    def _scope(self, level: Level, path: bytes, entries: dict[bytes, "os.DirEntry[str]"]) -> Scope:
        if level.parent is None:
            listed = self._selection.listed
            is_whole = listed is None or listed.is_named
            ignores = self._ignores_above() if self._selection.gitignore else ()
            scope = Scope(ignores, listed, is_whole)
        else:
            above = level.parent.scope
            assert above is not None
            node = above.listed.below.get(level.name) if above.listed is not None else None
            in_git = above.in_git or (self._selection.gitignore and level.name == GIT)
            is_whole = above.is_whole or (node is not None and node.is_named)
            scope = Scope(() if in_git else above.ignores, node, is_whole, in_git)
        if not self._selection.gitignore or scope.in_git:
            return scope
        return self._with_gitignore(level, path, scope, entries)

    def _with_gitignore(
        self, level: Level, path: bytes, scope: Scope, entries: dict[bytes, "os.DirEntry[str]"]
    ) -> Scope:
        """Add what is said in the directory itself; a repository knows no rules from outside."""
        ignores = scope.ignores
        if GIT in entries:
            ignores = ()
            if _is_directory(entries[GIT]):
                ignores = self._rules(level.fd, GIT_EXCLUDE, path, b"", len(path))
        if GITIGNORE in entries:
            ignores = self._rules(level.fd, GITIGNORE, path, b"", len(path)) + ignores
        return Scope(ignores, scope.listed, scope.is_whole)

    def _ignores_above(self) -> Rules:
        """Return the rules of the work tree that the top lies in: git goes by them, too."""
        repository = _repository_above(self._top)
        if repository is None:
            return ()
        way = self._top.relative_to(repository).parts
        rules = self._rules_above(repository, GIT_EXCLUDE, way)
        directory = repository
        for depth in range(len(way)):
            rules = self._rules_above(directory, GITIGNORE, way[depth:]) + rules
            directory /= way[depth]
        return rules

    def _rules_above(self, directory: Path, name: bytes, way: tuple[str, ...]) -> Rules:
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            self._problems.add_os_error(os.fsencode(directory), "its .gitignore is not known", exc)
            return ()
        try:
            front = os.fsencode("/".join(way)) + b"/"
            return self._rules(fd, name, os.fsencode(directory) + b"/", front, 0)
        finally:
            os.close(fd)

    def _rules(
        self, directory_fd: int, name: bytes, path: bytes, front: bytes, start: int
    ) -> Rules:
        """Return the patterns in a file, if there are any. ``path``: of its directory, to tell."""
        try:
            text = _read_small(directory_fd, name)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
                self._problems.add_os_error(path + name, "its patterns do not count", exc)
            return ()
        patterns = Patterns(lines_of(text or b""))
        return ((patterns, front, start),) if patterns else ()

    def _is_cache(self, level: Level) -> bool:
        try:
            return _read_small(level.fd, CACHE_TAG, len(CACHE_SIGNATURE)) == CACHE_SIGNATURE
        except OSError as exc:
            path = level.child_path(CACHE_TAG)
            self._problems.add_os_error(path, "taken for no tag of a cache", exc)
            return False


def _is_directory(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:  # the walk will tell
        return False


def _read_small(directory_fd: int, path: bytes, bytes_max: int | None = None) -> bytes | None:
    """Return the text of a file, or its first ``bytes_max`` bytes; None if it is no regular one.

    As for git, a symbolic link is none.
    """
    *way, name = path.split(b"/")
    with ExitStack() as held:
        for step in way:
            directory_fd, _ = held.enter_context(object_at(directory_fd, step))
        fd, reached = held.enter_context(object_at(directory_fd, name))
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        if bytes_max is None and status.st_size > PATTERN_FILE_BYTES_MAX:
            raise OSError(errno.EFBIG, f"more than {PATTERN_FILE_BYTES_MAX >> 20} MiB")
        with open(open_source(reached), "rb") as file:
            return file.read(bytes_max if bytes_max is not None else PATTERN_FILE_BYTES_MAX)


def _repository_above(top: Path) -> Path | None:
    """Return the nearest directory above ``top`` that is a work tree of git, if ``top`` is none.

    One that belongs to neither this user nor the owner of ``top`` does not count: somebody could
    have put it into /tmp.
    """
    trusted = {os.geteuid()}
    with suppress(OSError):
        trusted.add(top.stat().st_uid)
    for directory in [top, *top.parents]:
        try:
            owner = (directory / os.fsdecode(GIT)).lstat().st_uid
        except OSError:
            continue
        return directory if owner in trusted and directory != top else None
    return None
