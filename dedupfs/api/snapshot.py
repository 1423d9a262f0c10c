"""A snapshot as an object: what is in it, and what can be done with it. Source: docs/api.md."""

import datetime
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Literal, TextIO, cast, overload

from dedupfs.api.failures import public, public_generator
from dedupfs.api.reading import (
    AnyPath,
    Entry,
    SnapshotFile,
    Stat,
    check_mode,
    find_entry,
    shown_path,
    stat_of,
    wrapped,
)
from dedupfs.api.results import Change
from dedupfs.api.tree import Tree
from dedupfs.errors import (
    CorruptError,
    InvalidError,
    IsADirectoryNameError,
    MissingRecordError,
    NoAttributeError,
    NotADirectoryNameError,
    NotFoundError,
    ReadOnlyError,
    SourceError,
)
from dedupfs.model import SnapshotInfo, TreeEntry
from dedupfs.namespace.trees import TreeReader, tree_id_of
from dedupfs.transfer.compare import Difference, compare
from dedupfs.transfer.entries import is_possible

if TYPE_CHECKING:
    from dedupfs.api.opened import Hold
    from dedupfs.api.store import Store
    from dedupfs.transfer.report import ExportReport, Problem

_DAMAGE_SHOWN_MAX = 3


class Snapshot(Tree):
    """An immutable directory with a name.

    What it holds never changes; name, tags and pin may. They are as this object saw or made them
    last; ``store[name]`` looks again. Files that are open stay readable when the snapshot is
    removed, by whomever.
    """

    def __init__(self, store: "Store", info: SnapshotInfo) -> None:
        self._store = store
        self._info = info
        self._hold: Hold | None = None

    def __repr__(self) -> str:
        return f"<Snapshot {self.name!r} of {str(self._store.path)!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Snapshot):
            return NotImplemented
        return (self._store.path, self._info.sequence) == (
            other._store.path,
            other._info.sequence,
        )

    def __hash__(self) -> int:
        return hash((self._store.path, self._info.sequence))

    def __reduce__(self) -> tuple[object, ...]:
        return _reopened, (self._store, self.name)

    @property
    def name(self) -> str:
        """Its name, unique in the store."""
        return self._info.name

    @property
    def tags(self) -> dict[str, str]:
        """A copy of its tags."""
        return dict(self._info.tags)

    @property
    def pinned(self) -> bool:
        """Whether it is protected from removal."""
        return self._info.pinned

    @property
    def created_ns(self) -> int:
        """When it was made, in nanoseconds since 1970."""
        return self._info.created_ns

    @property
    def created(self) -> datetime.datetime:
        """When it was made, in UTC."""
        return datetime.datetime.fromtimestamp(self._info.created_ns / 1e9, datetime.UTC)

    @property
    def source(self) -> str:
        """The directory that it was imported from; "" if it was not."""
        return self._info.source

    @property
    def size(self) -> int:
        """Bytes of all files as they read; one of several names counts once."""
        return self._info.root.size

    # --- what is in it ---------------------------------------------------------------------------

    @public
    def stat(self, path: AnyPath = "", *, follow_symlinks: bool = True) -> Stat:
        """Return what is at ``path``.

        Raises:
            NotFoundError (FileNotFoundError): nothing.
        """
        return stat_of(self._find(path, follow=follow_symlinks))

    @public
    def readlink(self, path: AnyPath) -> str:
        """Return the target of a symbolic link."""
        entry = self._find(path, follow=False)
        if not entry.is_symlink:
            raise InvalidError(f"{shown_path(path)!r} is no symbolic link")
        return os.fsdecode(entry.content)

    @public
    def getxattr(self, path: AnyPath, name: AnyPath, *, follow_symlinks: bool = True) -> bytes:
        """Return an extended attribute.

        Raises:
            NoAttributeError (OSError with ENODATA): it is not set.
        """
        wanted = os.fsencode(name)
        for key, value in self._find(path, follow=follow_symlinks).xattrs:
            if key == wanted:
                return value
        raise NoAttributeError(f"{shown_path(path)!r} has no {os.fsdecode(wanted)!r}")

    @public
    def listxattr(self, path: AnyPath = "", *, follow_symlinks: bool = True) -> list[str]:
        """Return the names of the extended attributes."""
        return [os.fsdecode(key) for key, _ in self._find(path, follow=follow_symlinks).xattrs]

    def _listed(self, path: AnyPath) -> list[Entry]:
        where = shown_path(path)
        root = self._info.root
        with self._store._opened.trees() as trees:
            top = find_entry(trees, root, path, follow=True)
            if not top.is_directory:
                raise NotADirectoryNameError(f"{where!r} is no directory")
            listed = []
            for entry in trees.entries(tree_id_of(top)):
                if is_possible(entry):
                    name = os.fsdecode(entry.name)
                    found = stat_of(trees.resolve(root, entry))
                    listed.append(Entry(name, f"{where}/{name}" if where else name, found))
        return listed

    def _find(self, path: AnyPath, *, follow: bool) -> TreeEntry:
        with self._store._opened.trees() as trees:
            return find_entry(trees, self._info.root, path, follow=follow)

    @overload
    def open(
        self, path: AnyPath, mode: Literal["rb", "br"] = "rb", buffering: int = -1
    ) -> BinaryIO: ...
    @overload
    def open(
        self,
        path: AnyPath,
        mode: Literal["r", "rt", "tr"],
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> TextIO: ...
    @public
    def open(
        self,
        path: AnyPath,
        mode: str = "rb",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[bytes] | IO[str]:
        """Open a file for reading, as the built-in ``open``; ``buffering=0`` gives a SnapshotFile.

        Raises:
            NotFoundError, IsADirectoryNameError: the path. ReadOnlyError: ``mode`` is for writing.
        """
        check_mode(mode)
        if set(mode) - set("rbt"):
            raise ReadOnlyError(
                f"snapshot {self.name!r} never changes: write in a view of it (Store.view)"
            )
        raw = self._file(path)
        return cast(IO[bytes], wrapped(raw, mode, buffering, encoding, errors, newline))

    def _file(self, path: AnyPath) -> SnapshotFile:
        entry = self._find(path, follow=True)
        if entry.is_directory:
            raise IsADirectoryNameError(f"{shown_path(path)!r} is a directory")
        if not entry.is_file:
            raise InvalidError(f"{shown_path(path)!r} is no regular file")
        opened, hold = self._store._opened, self._held()
        return SnapshotFile(opened, opened.recipe(entry.content), shown_path(path), hold)

    def _held(self) -> "Hold | None":
        """Keep what is read from gc; as long as this object, or an open file, is there."""
        opened = self._store._opened
        if self._hold is None or self._hold.forks != opened.forks:
            try:
                self._hold = opened.hold(self._info.root)
            except MissingRecordError as exc:
                raise NotFoundError(f"snapshot {self.name!r} was removed") from exc
        return self._hold

    @public
    def read_bytes(self, path: AnyPath) -> bytes:
        """Return all of a file."""
        with self._file(path) as file:
            return file.readall()

    @public_generator
    def diff(self, other: "Snapshot") -> Iterator[Change]:
        """Yield what differs from this snapshot to ``other``, in path order.

        The cost follows the differences, not the snapshots.

        Raises:
            ValueError: ``other`` is of another store.
        """
        if other._store._opened is not self._store._opened:
            raise ValueError("snapshots of two stores cannot be compared")
        held = self._held(), other._held()
        core = self._store._opened.core
        reader = TreeReader(core)  # its own: others may look at trees between two differences
        for found in compare(core, self._info.root, other._info.root, reader=reader):
            yield _change_of(found)
        del held

    @public
    def export(self, directory: str | os.PathLike[str], path: AnyPath = "") -> None:
        """Restore the snapshot, or the directory ``path`` of it, as ``directory``.

        That must not exist, or be empty. Everything that can be restored is.

        Raises:
            SourceError: not everything could be restored. CorruptError: the store has lost some.
        """
        from dedupfs.transfer.export import export_tree

        self._held()
        core = self._store._opened.core
        top = self._find(path, follow=True)
        report = export_tree(core, self._info.root, Path(directory), top=top)
        self._require_all(report, os.fspath(directory))

    @public
    def export_tar(self, out: IO[bytes], path: AnyPath = "") -> None:
        """Write the snapshot, or the directory ``path`` of it, to ``out`` as a tar stream.

        Raises:
            SourceError: not everything is in it. CorruptError: the store has lost some.
        """
        from dedupfs.transfer.tar import export_tar

        self._held()
        core = self._store._opened.core
        report = export_tar(core, self._info.root, out, top=self._find(path, follow=True))
        self._require_all(report, "a tar stream")

    def _require_all(self, report: "ExportReport", where: str) -> None:
        if report.problems:
            what = f"not everything of {self.name!r} could be restored in {where}"
            error = CorruptError if report.damaged else SourceError
            raise error(f"{what}: {told_problems(report.problems)}")

    # --- what can be done with it ----------------------------------------------------------------

    @public
    def tag(
        self,
        changes: Mapping[str, object] | None = None,
        *,
        remove: Iterable[str] = (),
        **more: object,
    ) -> None:
        """Set tags, given as a mapping or by keyword; values become text. Remove others."""
        tags = {key: str(value) for key, value in {**(changes or {}), **more}.items()}
        with self._store._opened.changing:
            catalog = self._store._opened.catalog
            self._info = catalog.tag(self.name, tags, remove)

    @public
    def pin(self) -> None:
        """Protect it from removal."""
        self._set_pin(True)

    @public
    def unpin(self) -> None:
        """End the protection."""
        self._set_pin(False)

    def _set_pin(self, pinned: bool) -> None:
        with self._store._opened.changing:
            self._info = self._store._opened.catalog.pin(self.name, pinned)

    @public
    def rename(self, new_name: str) -> None:
        """Give it another name."""
        with self._store._opened.changing:
            self._info = self._store._opened.catalog.rename(self.name, new_name)

    @public
    def clone(self, new_name: str) -> "Snapshot":
        """Make a second snapshot of the same content, at no cost."""
        with self._store._opened.changing:
            return Snapshot(self._store, self._store._opened.catalog.clone(self.name, new_name))

    @public
    def remove(self) -> None:
        """Remove it from the store; ``Store.gc`` frees its space. Views of it keep what they show.

        Raises:
            UsageError (ValueError): it is pinned. NotFoundError: it is gone already.
        """
        with self._store._opened.changing:
            self._store._opened.catalog.remove([self.name])
        self._hold = None


def _reopened(store: "Store", name: str) -> Snapshot:
    store._warns = False  # nobody has it to close
    return store[name]


def _change_of(found: Difference) -> Change:
    before, after = (
        None if entry is None else stat_of(entry) for entry in (found.before, found.after)
    )
    return Change(found.kind.value, os.fsdecode(found.path), before, after)


def told_problems(problems: "list[Problem]") -> str:
    """Return the first of several problems, and how many there are."""
    told = "; ".join(str(problem) for problem in problems[:_DAMAGE_SHOWN_MAX])
    more = len(problems) - _DAMAGE_SHOWN_MAX
    return told if more <= 0 else f"{told}; and {more} more"
