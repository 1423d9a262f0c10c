"""What a store has that completes an argument: names, paths in snapshots, tags. Never complains.

A word that holds a path is completed one directory at a time, as shells do.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from dedupfs.errors import DedupfsError, UsageError

if TYPE_CHECKING:
    from dedupfs.store import Store

_STORE_PARAMETERS = ("store", "store_path", "where")
"""``where``: of ``commit``, which takes a directory of a mount, too."""
Words = Iterable[CompletionItem]


def find(kind: str, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Return the words of ``kind`` that begin with ``incomplete``."""
    try:
        return [
            item
            for item in _KINDS[kind](ctx, incomplete)
            if item.type != "plain" or item.value.startswith(incomplete)
        ]
    except (DedupfsError, OSError):  # no store, or not this user's
        return []


def _open(ctx: click.Context) -> "Store":
    from dedupfs.store import Store

    given = next((ctx.params[key] for key in _STORE_PARAMETERS if ctx.params.get(key)), None)
    arguments = [each.name for each in ctx.command.params if isinstance(each, click.Argument)]
    if given is None and ctx.args and arguments[:1] == ["store"]:
        given = ctx.args[0]  # click stops at an option that lacks its value: what is completed
    if given is None:
        raise UsageError("no store is named")
    # As it was typed: the shell has expanded nothing.
    return Store.open(Path(os.path.expanduser(os.path.expandvars(given))))


def _directories(_ctx: click.Context, incomplete: str) -> Words:
    return [CompletionItem(incomplete, type="dir")]


def _files(_ctx: click.Context, incomplete: str) -> Words:
    return [CompletionItem(incomplete, type="file")]


def _snapshots(ctx: click.Context, _incomplete: str) -> Iterator[CompletionItem]:
    from dedupfs.namespace.snapshots import SnapshotCatalog

    with _open(ctx) as store:
        for info in SnapshotCatalog(store).list():
            yield CompletionItem(info.name)


def _places(ctx: click.Context, incomplete: str) -> Iterator[CompletionItem]:
    """Yield snapshots, or after ``SNAPSHOT:`` the names in a directory of one."""
    name, colon, path = incomplete.partition(":")
    if not colon:
        yield from _snapshots(ctx, incomplete)
        return
    from dedupfs.cli.arguments import find_place
    from dedupfs.namespace.trees import TreeReader, tree_id_of

    above = path[: path.rfind("/") + 1]
    with _open(ctx) as store:
        reader = TreeReader(store)
        place = find_place(store, reader, f"{name}:{above}")
        for entry in reader.entries(tree_id_of(place.entry)):
            end = "/" if stat.S_ISDIR(entry.mode) else ""
            yield CompletionItem(f"{name}:{above}{os.fsdecode(entry.name)}{end}")


def _views(ctx: click.Context, _incomplete: str) -> Iterator[CompletionItem]:
    from dedupfs.namespace.views import list_views

    with _open(ctx) as store:
        for row in list_views(store):
            yield CompletionItem(row.name)


def _tags(ctx: click.Context, incomplete: str) -> Iterator[CompletionItem]:
    """Yield ``KEY=``, or after that every value which some snapshot has."""
    from dedupfs.namespace.snapshots import SnapshotCatalog

    with _open(ctx) as store:
        tags = [info.tags for info in SnapshotCatalog(store).list()]
    if "=" in incomplete:
        for pair in sorted({f"{key}={value}" for each in tags for key, value in each.items()}):
            yield CompletionItem(pair)
    else:
        for key in sorted({key for each in tags for key in each}):
            yield CompletionItem(f"{key}=")


def _tag_keys(ctx: click.Context, incomplete: str) -> Iterator[CompletionItem]:
    for item in _tags(ctx, incomplete.partition("=")[0]):
        yield CompletionItem(item.value.removesuffix("="))


def _checkouts(ctx: click.Context, incomplete: str) -> Iterator[CompletionItem]:
    """Yield directories, and of a store that is named the numbers of its checkouts."""
    yield from _directories(ctx, incomplete)
    if not ctx.params.get("store_path"):
        return
    from dedupfs.namespace.checkouts import list_numbers, read_checkout

    with _open(ctx) as store:
        for number in list_numbers(store):
            directory = os.fsdecode(read_checkout(store, number).directory)
            yield CompletionItem(str(number), help=directory)


def _mountpoints(_ctx: click.Context, incomplete: str) -> Iterator[CompletionItem]:
    from dedupfs.fuse.mountpoints import read_mounts

    mounts = [str(mount.mountpoint) for mount in read_mounts() if mount.is_ours]
    found = [path for path in mounts if path.startswith(incomplete)]
    yield from map(CompletionItem, found)
    if not found:
        yield CompletionItem(incomplete, type="dir")


_KINDS: dict[str, Callable[[click.Context, str], Words]] = {
    "checkout": _checkouts,
    "directory": _directories,
    "file": _files,
    "mountpoint": _mountpoints,
    "place": _places,
    "snapshot": _snapshots,
    "tag": _tags,
    "tag key": _tag_keys,
    "view": _views,
}
