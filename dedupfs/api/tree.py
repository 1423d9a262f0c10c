"""What a snapshot and a view have in common: a directory to read. Source: docs/api.md."""

import fnmatch
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from dedupfs.api.failures import public, public_generator
from dedupfs.api.reading import AnyPath, Entry, Stat, shown_path
from dedupfs.errors import DedupfsError, NotADirectoryNameError, NotFoundError

_ANY_DEPTH = "**"
Walked = tuple[str, list[str], list[str]]


class Tree(ABC):
    """A directory that is read: a ``Snapshot`` or a ``View``.

    A path is text, bytes or a ``PurePath``; names that are no UTF-8 come as text with surrogate
    escapes, as everywhere in Python.
    """

    @abstractmethod
    def stat(self, path: AnyPath = "", *, follow_symlinks: bool = True) -> Stat:
        """Return what is at ``path``."""

    @abstractmethod
    def read_bytes(self, path: AnyPath) -> bytes:
        """Return all of a file."""

    @abstractmethod
    def readlink(self, path: AnyPath) -> str:
        """Return the target of a symbolic link."""

    @abstractmethod
    def _listed(self, path: AnyPath) -> list[Entry]:
        """Return what is in a directory, sorted by the names' bytes."""

    @public
    def exists(self, path: AnyPath = "", *, follow_symlinks: bool = True) -> bool:
        """Whether ``path`` leads to something."""
        try:
            self.stat(path, follow_symlinks=follow_symlinks)
        except (NotFoundError, NotADirectoryNameError):
            return False
        return True

    @public
    def ls(self, path: AnyPath = "") -> list[str]:
        """Return the names in a directory, sorted by their bytes."""
        return [entry.name for entry in self._listed(path)]

    @public
    def scandir(self, path: AnyPath = "") -> list[Entry]:
        """Return what is in a directory, with its ``Stat``; links are not followed."""
        return self._listed(path)

    @public
    def read_text(self, path: AnyPath, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return all of a text file."""
        return self.read_bytes(path).decode(encoding, errors)

    @public_generator
    def walk(
        self,
        path: AnyPath = "",
        *,
        top_down: bool = True,
        on_error: Callable[[DedupfsError], object] | None = None,
    ) -> Iterator[Walked]:
        """Yield (directory, its directories, its other names), as ``pathlib.Path.walk``.

        Links are not followed. From the top, what the caller removes from the list of directories
        is left out. A directory that cannot be listed is told to ``on_error`` and left out; without
        it that ends the walk.
        """
        pending: list[str | Walked] = [shown_path(path)]
        while pending:
            top = pending.pop()
            if isinstance(top, tuple):
                yield top
                continue
            try:
                listed = self.scandir(top)
            except DedupfsError as exc:
                if on_error is None:
                    raise
                on_error(exc)
                continue
            directories = [entry.name for entry in listed if entry.stat.is_dir]
            found = top, directories, [entry.name for entry in listed if not entry.stat.is_dir]
            if top_down:
                yield found
            else:
                pending.append(found)
            pending += [f"{top}/{name}" if top else name for name in reversed(directories)]

    @public_generator
    def glob(self, pattern: str) -> Iterator[str]:
        """Yield the paths that match, such as ``"step-*/*.safetensors"``, in the order of ``walk``.

        ``**`` stands for any number of directories. Hidden names match, and links are not followed,
        as with ``pathlib``.
        """
        parts = [part for part in pattern.split("/") if part not in ("", ".")]
        if ".." in parts or not parts:
            raise ValueError(f"a pattern is a path downwards, not {pattern!r}")
        seen: set[str] = {""}
        for found in self._matching("", parts):
            if found not in seen:
                yield found
            if parts.count(_ANY_DEPTH) > 1:  # else each is found once
                seen.add(found)

    def _matching(self, top: str, parts: list[str]) -> Iterator[str]:
        part, rest = parts[0], parts[1:]
        if part == _ANY_DEPTH:
            while rest[:1] == [_ANY_DEPTH]:
                rest = rest[1:]
            for directory, _directories, files in self.walk(top):
                if rest:
                    yield from self._matching(directory, rest)
                else:
                    yield from (_below(directory, name) for name in ("", *files))
            return
        matches = re.compile(fnmatch.translate(part)).match
        for entry in self._listed(top):
            if matches(entry.name):
                where = _below(top, entry.name)
                if not rest:
                    yield where
                elif entry.stat.is_dir:
                    yield from self._matching(where, rest)


def _below(top: str, name: str) -> str:
    return f"{top}/{name}" if top and name else top or name
