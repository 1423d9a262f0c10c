"""Commands that change the catalogue: rm, rename, clone, tag, pin, unpin.

Specified in docs/cli.md.
"""

import errno
import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import (
    DRY_RUN,
    JSON,
    STORE,
    completed_with,
    open_store,
    parse_tags,
    snapshot_argument,
)
from dedupfs.cli.browsing import tags_text

if TYPE_CHECKING:
    from dedupfs.maintenance.release import Exclusive
    from dedupfs.model import SnapshotInfo
    from dedupfs.store import Store

_CLONE_ERRORS = {
    errno.ENOENT: "there is no such snapshot or directory",
    errno.ENOTEMPTY: "it has held something before; take a new directory",
    errno.EXDEV: "hard links in it would be cut; clone the whole snapshot into the mount's root",
}

NAMES = snapshot_argument("names", "NAME...", nargs=-1, required=True)


@click.command()
@STORE
@NAMES
@DRY_RUN
@click.option("--no-gc", is_flag=True, help="Leave freeing the space to a later gc.")
@JSON
def rm(store: Path, names: tuple[str, ...], dry_run: bool, no_gc: bool, as_json: bool) -> None:
    """Remove the snapshots NAME from STORE and free what only they held.

    Views that were made from a snapshot keep it. A pinned snapshot is not removed.

    \b
    Examples:
      dedupfs rm --dry-run store/ step-1000 step-2000
      dedupfs rm store/ step-1000
    """
    from dedupfs.namespace.snapshots import SnapshotCatalog

    with open_store(store) as opened:
        wanted = tuple(dict.fromkeys(names))
        freed: int | None
        disk_bytes: int | None = None
        held: list[str] = []
        if dry_run:
            would = _would_free(opened, wanted)
            freed, disk_bytes = would.stored_bytes, would.disk_bytes
        else:
            infos = SnapshotCatalog(opened).remove(wanted)
            freed = None if no_gc else collect_garbage(opened)
            held = [] if no_gc else still_held(opened, infos)
    if as_json:
        output.print_json(
            {
                "removed": list(wanted),
                "dry_run": dry_run,
                "freed_bytes": freed,
                "frees_bytes": disk_bytes,
                "still_held": held,
            }
        )
        return
    for name in wanted:
        output.print_line(f"{'would remove' if dry_run else 'removed'} {name}")
    print_freed(store, freed, disk_bytes, held, dry_run=dry_run)


def print_freed(
    store: Path, freed: int | None, disk_bytes: int | None, held: Sequence[str], *, dry_run: bool
) -> None:
    """Say what a removal has given back, or would; None: nothing was freed, or it is not known."""
    if freed is None:
        output.print_line(f"the space is freed by: dedupfs gc {store}")
    else:
        output.print_line(f"{'would free' if dry_run else 'freed'} {output.size(freed)}")
    if disk_bytes is not None:
        output.print_line(f"would give {output.size(disk_bytes)} back to the disk")
    for name in held:
        held_by = "a view, a mount or a clone; its space comes with them"
        output.print_line(f"{name} is still held by {held_by}")


def still_held(store: "Store", infos: Sequence["SnapshotInfo"]) -> list[str]:
    """Return those of the removed snapshots whose whole tree something else refers to."""
    from dedupfs.namespace.trees import tree_id_of

    trees = [(info.name, tree_id_of(info.root)) for info in infos]
    return [name for name, tree_id in trees if tree_id is not None and store.has(tree_id)]


def _would_free(store: "Store", names: Sequence[str]) -> "Exclusive":
    from dedupfs.errors import UsageError
    from dedupfs.maintenance.usage import exclusive_bytes
    from dedupfs.namespace.snapshots import SnapshotCatalog

    catalog = SnapshotCatalog(store)
    pinned = [name for name in names if catalog.get(name).pinned]
    if pinned:
        raise UsageError(f"{', '.join(pinned)} is pinned: dedupfs unpin {store.path} {pinned[0]}")
    return exclusive_bytes(store, names)


def collect_garbage(store: "Store") -> int:
    """Run gc with a progress bar; return the bytes that it freed."""
    from dedupfs.maintenance.gc import collect
    from dedupfs.namespace import live

    live.fold_all(store.path, output.note)
    with output.meter("freeing") as bar:
        progress = bar.update if output.is_watched() else None
        return collect(store, progress=progress).stored_bytes


@click.command()
@STORE
@snapshot_argument("snapshot", "SNAPSHOT")
@click.argument("name")
def rename(store: Path, snapshot: str, name: str) -> None:
    """Give SNAPSHOT the new NAME.

    \b
    Example:
      dedupfs rename store/ step-1000 best
    """
    from dedupfs.namespace.snapshots import SnapshotCatalog

    with open_store(store) as opened:
        SnapshotCatalog(opened).rename(snapshot, name)


@click.command()
@STORE
@snapshot_argument("snapshot", "SNAPSHOT[:PATH]")
@click.argument(
    "names",
    metavar="NAME|DIRECTORY...",
    nargs=-1,
    required=True,
    shell_complete=completed_with("directory"),
)
def clone(store: Path, snapshot: str, names: tuple[str, ...]) -> None:
    """Make NAME, a second snapshot with the content of SNAPSHOT, at once and at no cost.

    A DIRECTORY (with a slash) is a new one in a writable mount, which is then a clone of its own.
    Of several the first that cannot be made ends it; those before it stay.

    \b
    Examples:
      dedupfs clone store/ step-1000 before-cleanup
      dedupfs clone store/ step-1000 /workspace/ckpts/run7
      dedupfs clone store/ nightly /mnt/test-{1..20}
    """
    for is_directory, several in groupby(names, lambda name: "/" in name):
        if is_directory:
            for name in several:
                _clone_in_mount(store, snapshot, Path(name))
        else:
            _clone_in_catalogue(store, snapshot, several)


def _clone_in_catalogue(store: Path, snapshot: str, names: Iterable[str]) -> None:
    from dedupfs.namespace.snapshots import SnapshotCatalog

    with open_store(store) as opened:
        catalog = SnapshotCatalog(opened)
        for name in names:
            catalog.clone(snapshot, name)


def _clone_in_mount(store: Path, source: str, directory: Path) -> None:
    """Have the daemon of a mount fill a directory, which is made if it is not there."""
    from dedupfs.errors import MountError, NotFoundError, UsageError
    from dedupfs.fuse import mountpoints

    where = Path(os.path.realpath(directory))
    found = mountpoints.mount_containing(where)
    if found is None or not found.is_ours or not os.path.samefile(found.source, store):
        raise UsageError(f"{directory} is not in a mount of {store}")
    made = False
    try:
        if not where.is_dir():
            where.mkdir()
            made = True
        os.setxattr(where, "user.dedupfs.clone", os.fsencode(source))
    except OSError as exc:
        if made:
            where.rmdir()
        why = _CLONE_ERRORS.get(exc.errno or 0, exc.strerror)
        error_class = NotFoundError if exc.errno == errno.ENOENT else MountError
        raise error_class(f"cannot make {directory} a clone of {source}: {why}") from exc


@click.command()
@STORE
@snapshot_argument("snapshot", "SNAPSHOT")
@click.argument("changes", metavar="[KEY=VALUE...]", nargs=-1, shell_complete=completed_with("tag"))
@click.option(
    "--remove",
    "removed",
    metavar="KEY",
    multiple=True,
    shell_complete=completed_with("tag key"),
    help="Remove a tag; repeatable.",
)
@JSON
def tag(
    store: Path, snapshot: str, changes: tuple[str, ...], removed: tuple[str, ...], as_json: bool
) -> None:
    """Set or remove tags of SNAPSHOT, and show the tags it has then.

    \b
    Examples:
      dedupfs tag store/ step-1000
      dedupfs tag store/ step-1000 loss=1.93 run=a7 --remove draft
    """
    from dedupfs.namespace.snapshots import SnapshotCatalog

    tags = parse_tags(changes, "")
    with open_store(store) as opened:
        catalog = SnapshotCatalog(opened)
        changed = tags or removed
        info = catalog.tag(snapshot, tags, removed) if changed else catalog.get(snapshot)
    if as_json:
        output.print_json(dict(info.tags))
    elif info.tags:
        output.print_line(tags_text(info.tags))


@click.command()
@STORE
@NAMES
def pin(store: Path, names: tuple[str, ...]) -> None:
    """Protect the snapshots NAME: rm refuses them until unpin.

    \b
    Example:
      dedupfs pin store/ step-1000
    """
    _pin(store, names, pinned=True)


@click.command()
@STORE
@NAMES
def unpin(store: Path, names: tuple[str, ...]) -> None:
    """End the protection of the snapshots NAME.

    \b
    Example:
      dedupfs unpin store/ step-1000
    """
    _pin(store, names, pinned=False)


def _pin(store: Path, names: Sequence[str], *, pinned: bool) -> None:
    from dedupfs.namespace.snapshots import SnapshotCatalog

    with open_store(store) as opened:
        catalog = SnapshotCatalog(opened)
        for name in names:
            catalog.pin(name, pinned)


COMMANDS: list[click.Command] = [rm, rename, clone, tag, pin, unpin]
