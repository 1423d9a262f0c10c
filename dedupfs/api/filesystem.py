"""A file system for fsspec, so that what speaks it reads snapshots without a mount.

``dedupfs://SNAPSHOT/PATH`` with ``store=DIRECTORY`` (or ``$DEDUPFS_STORE``). Snapshots are
read-only; with ``view=NAME`` the same paths lead into that view, which can be written to. fsspec
only here.
Source: docs/api.md, "fsspec".
"""

import datetime
import hashlib
import os
import shutil
from typing import TYPE_CHECKING, Any, ClassVar

from fsspec import AbstractFileSystem

from dedupfs.api.failures import public
from dedupfs.api.reading import Stat
from dedupfs.api.sharedviews import close_shared_view, open_shared_view
from dedupfs.api.snapshot import Snapshot
from dedupfs.api.store import Store
from dedupfs.errors import (
    ExistsError,
    InvalidError,
    NotEmptyError,
    ReadOnlyError,
    UsageError,
)

if TYPE_CHECKING:
    from dedupfs.api.view import View

Info = dict[str, Any]
_COPY_BYTES = 4 << 20


class DedupfsFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The snapshots of one store, or a view of it, as fsspec wants a file system.

    fsspec keeps such an object, and so the store and the view stay open, until ``close``.
    """

    protocol: ClassVar[str] = "dedupfs"
    root_marker: ClassVar[str] = ""

    @public
    def __init__(
        self, store: str | os.PathLike[str] | None = None, view: str | None = None, **options: Any
    ) -> None:
        if getattr(self, "_initialized", False):
            return
        super().__init__(**options)
        where = store or os.environ.get("DEDUPFS_STORE")
        if not where:
            raise UsageError("which store? give store=DIRECTORY, or set DEDUPFS_STORE")
        self._store = Store.open(where)
        self._store._warns = False  # fsspec closes nothing
        try:
            self._view: View | None = None if view is None else open_shared_view(self._store, view)
        except BaseException:
            self._store.close()
            raise
        self._initialized = True

    def close(self) -> None:
        """Close the view and the store, and have fsspec forget this object."""
        self.clear_instance_cache()
        if self._view is not None:
            close_shared_view(self._store, self._view)
            self._view = None
        self._store.close()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = os.fspath(path)
        return text.removeprefix("dedupfs:").strip("/")

    @property
    def fsid(self) -> str:
        """Tells this store, or this view of it, from others."""
        return f"dedupfs_{self._store.path}_{self._view.name if self._view is not None else ''}"

    def _at(self, path: str) -> "tuple[Snapshot | View, str]":
        """Return what ``path``, without its protocol, leads into, and the rest of the way."""
        if self._view is not None:
            return self._view, path
        name, _, rest = path.partition("/")
        return self._store[name], rest

    def _writable(self) -> "View":
        if self._view is None:
            raise ReadOnlyError("snapshots never change: give view=NAME to write in a view")
        return self._view

    # --- reading ---------------------------------------------------------------------------------

    @public
    def info(self, path: str, **_options: Any) -> Info:
        """Return what is at ``path``; links are followed."""
        path = self._strip_protocol(path)
        if not path:
            return {"name": "", "size": 0, "type": "directory"}
        tree, rest = self._at(path)
        found = tree.stat(rest, follow_symlinks=False)
        link = tree.readlink(rest) if found.is_symlink else None
        if link is not None and tree.exists(rest):
            found = tree.stat(rest)
        return _info(path, found, link)

    @public
    def ls(self, path: str, detail: bool = True, **_options: Any) -> list[Any]:
        """List a directory, or the snapshots. A link to a directory is no directory here."""
        path = self._strip_protocol(path)
        if not path and self._view is None:
            listed = [_info(one.name, one.stat(), None) for one in self._store.snapshots()]
        else:
            tree, rest = self._at(path)
            if not tree.stat(rest).is_dir:
                listed = [self.info(path)]
            else:
                top = path.removesuffix(rest) if rest else f"{path}/" if path else ""
                listed = [
                    self.info(top + entry.path)
                    if entry.stat.is_symlink
                    else _info(top + entry.path, entry.stat, None)
                    for entry in tree.scandir(rest)
                ]
                for one in listed:
                    if "destination" in one and one["type"] == "directory":
                        one["type"] = "other"  # or whoever walks could go round for ever
        return listed if detail else [one["name"] for one in listed]

    @public
    def modified(self, path: str) -> datetime.datetime:
        """Return when a file was changed last."""
        mtime_ns = self.info(path)["mtime_ns"]
        return datetime.datetime.fromtimestamp(mtime_ns / 1e9, datetime.UTC)

    @public
    def created(self, path: str) -> datetime.datetime:
        """Return when the snapshot was made that ``path`` is in; a view's is not known."""
        tree, _rest = self._at(self._strip_protocol(path))
        if not isinstance(tree, Snapshot):
            raise NotImplementedError("a view does not know when its files were made")
        return tree.created

    @public
    def _open(self, path: str, mode: str = "rb", *_args: Any, **_options: Any) -> Any:
        if mode == "rb":
            tree, rest = self._at(path)
            return tree.open(rest, "rb")
        view = self._writable()
        self._make_parent(view, path)
        return view.open(path, mode)  # type: ignore[call-overload]

    # --- writing, in a view ----------------------------------------------------------------------

    @staticmethod
    def _make_parent(view: "View", path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent and not view.exists(parent):
            view.mkdir(parent, parents=True, exist_ok=True)

    @public
    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_options: Any) -> None:
        """Make ``value`` all of a file."""
        with self.open(path, "xb" if mode == "create" else "wb") as file:
            file.write(value)

    @public
    def mkdir(self, path: str, create_parents: bool = True, **_options: Any) -> None:
        """Make a directory."""
        self._writable().mkdir(self._strip_protocol(path), parents=create_parents)

    @public
    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory and those above it."""
        path = self._strip_protocol(path)
        if path:
            self._writable().mkdir(path, parents=True, exist_ok=exist_ok)
        elif not exist_ok:
            raise ExistsError("the root exists")

    @public
    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        self._writable().rmdir(self._strip_protocol(path))

    @public
    def rm_file(self, path: str) -> None:
        """Remove a file."""
        self._writable().remove(self._strip_protocol(path))

    @public
    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files and, when ``recursive``, directories."""
        view = self._writable()
        paths = [path] if isinstance(path, str | os.PathLike) else list(path)
        for one in self.expand_path(paths, recursive=False, maxdepth=maxdepth):
            if not view.stat(one, follow_symlinks=False).is_dir:
                view.remove(one)
            elif recursive:
                view.rmtree(one)
            else:
                raise NotEmptyError(f"{one!r} is a directory: remove it with recursive=True")

    @public
    def cp_file(self, path1: str, path2: str, **_options: Any) -> None:
        """Copy a file, or make a directory; no byte is read unless ``path2`` is there already."""
        view = self._writable()
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if view.stat(source).is_dir:
            self.makedirs(target, exist_ok=True)
            return
        self._make_parent(view, target)
        if not view.exists(target, follow_symlinks=False):
            view.copy(source, target)
            return
        if view._is_same(source, target):
            raise InvalidError(f"{source!r} and {target!r} are the same file")
        with self.open(source, "rb") as old, self.open(target, "wb") as new:
            shutil.copyfileobj(old, new, _COPY_BYTES)

    @public
    def touch(self, path: str, truncate: bool = True, **_options: Any) -> None:
        """Make an empty file, or make one empty."""
        with self.open(path, "wb" if truncate else "ab"):
            pass

    @public
    def commit(self, name: str, path: str = "", tags: dict[str, object] | None = None) -> Snapshot:
        """Freeze the view, or the directory ``path`` of it, as the snapshot ``name``."""
        return self._writable().commit(name, path=self._strip_protocol(path), tags=tags)


def _info(name: str, found: Stat, link: str | None) -> Info:
    kind = "directory" if found.is_dir else "file" if found.is_file else "other"
    told: Info = {
        "name": name,
        "size": found.size,
        "type": kind,
        "mode": found.mode,
        "uid": found.uid,
        "gid": found.gid,
        "mtime": found.mtime,
        "mtime_ns": found.mtime_ns,
        "islink": link is not None,
    }
    if link is not None:
        told["destination"] = link
    if found.content:  # so that a cache sees when a name stands for other bytes
        told["ETag"] = hashlib.blake2b(found.content, digest_size=16).hexdigest()
    return told
