"""A store with snapshots, checkouts of it, and what must be true of both."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from dedupfs.checkout.make import (
    What,
    make_checkout,
    remove_checkout,
    update_checkout,
)
from dedupfs.checkout.objects import CheckoutReport
from dedupfs.checkout.place import find_checkout
from dedupfs.maintenance.check import check
from dedupfs.maintenance.scrub import scrub
from dedupfs.namespace.checkouts import open_checkout
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store
from dedupfs.transfer.export import export_tree
from tests.maintenance.samples import SMALL

SETTINGS: dict[str, Any] = SMALL | {"chunk_bytes_average": 4096, "verbatim_bytes_min": 32 << 10}
"""Chunks of 1 to 16 KiB; a file of 32 KiB may be a link."""

Picture = dict[str, tuple[object, ...]]


def what(store: Store, name: str, path: bytes = b"") -> What:
    info = SnapshotCatalog(store).get(name)
    return What(info, path, TreeReader(store).walk_path(info.root, path))


def check_out(store: Store, name: str, directory: Path, link: str, **more: Any) -> CheckoutReport:
    return make_checkout(store, what(store, name), directory, link, **more)


def update(store: Store, directory: Path, name: str | None, **more: Any) -> CheckoutReport:
    with open_checkout(store, find_checkout(store, directory).number) as registration:
        wanted = what(store, name) if name is not None else None
        return update_checkout(store, registration, directory, wanted, **more)


def remove(store: Store, directory: Path, **more: Any) -> CheckoutReport:
    with open_checkout(store, find_checkout(store, directory).number) as registration:
        return remove_checkout(store, registration, directory, **more)


def exported(store: Store, name: str, directory: Path) -> Path:
    info = SnapshotCatalog(store).get(name)
    report = export_tree(store, info.root, directory)
    assert not report.problems
    return directory


def picture(top: Path, *, links: bool = False) -> Picture:
    """Everything below a directory: of files their bytes, and their attributes.

    ``links``: large files may be links into a store: their attributes do not count.
    """
    found: Picture = {}
    for path in [top, *sorted(top.rglob("*"))]:
        status = path.lstat()
        name = str(path.relative_to(top))
        if links and path.is_file() and path.stat().st_size >= SETTINGS["verbatim_bytes_min"]:
            found[name] = ("large", path.read_bytes())
            continue
        xattrs = tuple(
            (key, os.getxattr(path, key, follow_symlinks=False))
            for key in sorted(os.listxattr(path, follow_symlinks=False))
            if key != "user.dedupfs.checkout"
        )
        data: object = None
        if stat.S_ISLNK(status.st_mode):
            data = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            data = path.read_bytes()
        nlink = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
        found[name] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_rdev,
            nlink,
            xattrs,
            data,
        )
    return found


def sound(store: Store) -> None:
    report = check(store)
    assert report.ok, report.problems
    assert scrub(store).ok
