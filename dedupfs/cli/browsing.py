"""Looking into snapshots without a mount: ls, cat, find, diff. Changes nothing.

Specified in docs/cli.md.
"""

import fnmatch
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import JSON, STORE, Place, find_place, open_store, snapshot_argument
from dedupfs.errors import IsADirectoryNameError, UsageError

if TYPE_CHECKING:
    from dedupfs.model import SnapshotInfo, TreeEntry
    from dedupfs.namespace.trees import TreeReader
    from dedupfs.store import Store
    from dedupfs.transfer.compare import Difference

_READ_BYTES = 4 << 20
_TYPE_LETTERS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
}
_SIGNS = {"added": "+", "removed": "-", "modified": "M", "metadata": "m", "type": "T"}


@click.command()
@STORE
@snapshot_argument("where", "[SNAPSHOT[:PATH]]", required=False)
@click.option("-l", "--long", "is_long", is_flag=True, help="Show mode, owner, size and time too.")
@click.option("-R", "--recursive", is_flag=True, help="Show everything below as well.")
@JSON
def ls(store: Path, where: str | None, is_long: bool, recursive: bool, as_json: bool) -> None:
    """List the snapshots of STORE, or the directory PATH of SNAPSHOT.

    Without SNAPSHOT: name, time, entries, logical size, tags; "*" marks a pinned snapshot. Sizes
    are those of the files as they read; 'dedupfs du' tells what snapshots take.

    \b
    Examples:
      dedupfs ls store/
      dedupfs ls store/ step-1000
      dedupfs ls -l store/ step-1000:optimizer
      dedupfs ls -R --json store/ step-1000
    """
    from dedupfs.namespace.trees import TreeReader

    with open_store(store) as opened:
        reader = TreeReader(opened)
        if where is None:
            _list_snapshots(opened, as_json)
            return
        place = find_place(opened, reader, where)
        found = _listed(reader, place, recursive=recursive)
        if as_json:
            output.print_json_array(_entry_json(path, entry) for path, entry in found)
        elif is_long:
            _print_long(found)
        else:
            from dedupfs.transfer.report import shown

            for path, _entry in found:
                output.print_line(shown(path))


def _list_snapshots(store: "Store", as_json: bool) -> None:
    from dedupfs.namespace.snapshots import SnapshotCatalog

    infos = SnapshotCatalog(store).list()
    if as_json:
        output.print_json([snapshot_json(info) for info in infos])
        return
    rows = [
        (
            info.name + ("*" if info.pinned else ""),
            output.time_text(info.created_ns),
            f"{info.root.count:,}",
            output.size(info.root.size),
            tags_text(info.tags),
        )
        for info in infos
    ]
    output.print_table(("NAME", "CREATED", "ENTRIES", "SIZE", "TAGS"), rows, right=(2, 3))


def tags_text(tags: dict[str, str]) -> str:
    """Return tags as they are given to --tag."""
    return " ".join(f"{key}={value}" for key, value in sorted(tags.items()))


def snapshot_json(info: "SnapshotInfo") -> dict[str, output.Json]:
    """Return what --json tells of a snapshot."""
    return {
        "name": info.name,
        "sequence": info.sequence,
        "created_ns": info.created_ns,
        "entries": info.root.count,
        "logical_bytes": info.root.size,
        "pinned": info.pinned,
        "source": info.source,
        "tags": dict(info.tags),
    }


def _listed(
    reader: "TreeReader", place: Place, *, recursive: bool
) -> Iterator[tuple[bytes, "TreeEntry"]]:
    """Yield what ``ls`` shows; a place that is no directory is shown itself."""
    from dedupfs.transfer.entries import entries_below

    if not place.entry.is_directory:
        yield place.path.rpartition(b"/")[2], place.entry
        return
    for path, entry in entries_below(reader, place.entry, depth_max=None if recursive else 1):
        yield path, reader.resolve(place.info.root, entry)


def _entry_json(path: bytes, entry: "TreeEntry") -> dict[str, output.Json]:
    fields: dict[str, output.Json] = {
        "path": output.text_of(path),
        "type": _TYPE_LETTERS.get(stat.S_IFMT(entry.mode), "?"),
        "mode": f"{stat.S_IMODE(entry.mode):04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
        "nlink": entry.nlink,
    }
    if entry.is_symlink:
        fields["target"] = output.text_of(entry.content)
    if entry.is_directory:
        fields["entries"] = entry.count
    if entry.xattrs:
        fields["xattrs"] = [output.text_of(name) for name, _ in entry.xattrs]
    return fields


def _print_long(found: Iterable[tuple[bytes, "TreeEntry"]]) -> None:
    from dedupfs.transfer.report import shown

    for path, entry in found:
        arrow = f" -> {shown(entry.content)}" if entry.is_symlink else ""
        output.print_line(
            f"{stat.filemode(entry.mode)} {entry.nlink:>3} {entry.uid:>5} {entry.gid:>5} "
            f"{output.size(entry.size):>10} {output.time_text(entry.mtime_ns)} {shown(path)}{arrow}"
        )


@click.command()
@STORE
@snapshot_argument("places", "SNAPSHOT:PATH...", nargs=-1, required=True)
def cat(store: Path, places: tuple[str, ...]) -> None:
    """Write the files SNAPSHOT:PATH to standard output.

    Symbolic links are not followed.

    \b
    Example:
      dedupfs cat store/ step-1000:config.json
    """
    from dedupfs.namespace.contents import load_recipe
    from dedupfs.namespace.trees import TreeReader

    out = sys.stdout.buffer
    with open_store(store) as opened:
        reader = TreeReader(opened)
        for text in places:
            entry = find_place(opened, reader, text).entry
            if entry.is_directory:
                raise IsADirectoryNameError(f"{text} is a directory; dedupfs ls shows it")
            if not entry.is_file:
                raise UsageError(f"{text} is no regular file: {stat.filemode(entry.mode)}")
            recipe = load_recipe(opened, entry.content)
            for start in range(0, recipe.size, _READ_BYTES):
                out.write(opened.read(recipe.cut(start, start + _READ_BYTES)))
    out.flush()


@click.command()
@STORE
@click.argument("pattern")
@snapshot_argument("snapshots", "[SNAPSHOT...]", nargs=-1)
@click.option(
    "--type", "kind", type=click.Choice(list(_TYPE_LETTERS.values())), help="Only this type."
)
@click.option("--size-min", metavar="SIZE", help="Only files of at least SIZE (bytes, or 1MiB).")
@JSON
def find(
    store: Path,
    pattern: str,
    snapshots: tuple[str, ...],
    kind: str | None,
    size_min: str | None,
    as_json: bool,
) -> None:
    """Find names that match the shell PATTERN, in all snapshots or in those given.

    A PATTERN with a slash is matched against the whole path, one without against the name alone.
    Prints SNAPSHOT:PATH, as cat, ls and export take it.

    \b
    Examples:
      dedupfs find store/ '*.safetensors'
      dedupfs find store/ 'optimizer/*' step-1000 --size-min 1GiB --json
    """
    from dedupfs.namespace.snapshots import SnapshotCatalog
    from dedupfs.namespace.trees import TreeReader
    from dedupfs.transfer.report import shown

    least = output.parse_size(size_min) if size_min is not None else 0
    with open_store(store) as opened:
        catalog = SnapshotCatalog(opened)
        infos = [catalog.get(name) for name in snapshots] if snapshots else catalog.list()
        reader = TreeReader(opened)
        found = (
            (info, path, entry)
            for info in infos
            for path, entry in _matches(reader, info, pattern)
            if entry.size >= least and kind in (None, _TYPE_LETTERS.get(stat.S_IFMT(entry.mode)))
        )
        if as_json:
            output.print_json_array(
                {"snapshot": info.name, **_entry_json(path, entry)} for info, path, entry in found
            )
            return
        for info, path, _entry in found:
            output.print_line(f"{info.name}:{shown(path)}")


def _matches(
    reader: "TreeReader", info: "SnapshotInfo", pattern: str
) -> Iterator[tuple[bytes, "TreeEntry"]]:
    from dedupfs.transfer.entries import entries_below

    raw = os.fsencode(pattern.lstrip("/"))
    by_path = b"/" in raw
    for path, entry in entries_below(reader, info.root):
        if fnmatch.fnmatchcase(path if by_path else entry.name, raw):
            yield path, reader.resolve(info.root, entry)


@click.command()
@STORE
@snapshot_argument("before", "A[:PATH]")
@snapshot_argument("after", "B[:PATH]")
@click.option("--exit-code", is_flag=True, help="Exit with 1 when there are differences.")
@JSON
@click.pass_context
def diff(
    ctx: click.Context, store: Path, before: str, after: str, exit_code: bool, as_json: bool
) -> None:
    """Show what differs from A to B, each SNAPSHOT or SNAPSHOT:PATH.

    Equal trees are skipped by their ids: the cost follows the difference, not the snapshots.
    A line a path: + added, - removed, M content, m only metadata, T another type.

    \b
    Examples:
      dedupfs diff store/ step-1000 step-2000
      dedupfs diff store/ monday:etc tuesday:etc --json
    """
    from dedupfs.namespace.trees import TreeReader
    from dedupfs.transfer.compare import Side, compare

    with open_store(store) as opened:
        reader = TreeReader(opened)
        sides = [
            Side(place.info.root, place.entry)
            for place in (find_place(opened, reader, text) for text in (before, after))
        ]
        found = compare(opened, sides[0], sides[1], reader=reader)
        differs = print_differences(found, as_json=as_json)
    if differs and exit_code:
        ctx.exit(1)


def print_differences(differences: Iterable["Difference"], *, as_json: bool) -> bool:
    """Print differences as they come; return whether there was one."""
    differs = False

    def passing() -> Iterator["Difference"]:
        nonlocal differs
        for found in differences:
            differs = True
            yield found

    if as_json:
        output.print_json_array(_difference_json(found) for found in passing())
    else:
        for found in passing():
            output.print_line(_difference_line(found))
    return differs


def _difference_json(found: "Difference") -> dict[str, output.Json]:
    sides = {"before": found.before, "after": found.after}
    return {
        "kind": found.kind.value,
        "path": output.text_of(found.path),
        **{
            name: None if entry is None else _entry_json(found.path, entry)
            for name, entry in sides.items()
        },
    }


def _difference_line(found: "Difference") -> str:
    from dedupfs.transfer.report import shown

    sign = _SIGNS[found.kind.value]
    entry = found.after or found.before
    slash = "/" if entry is not None and entry.is_directory and found.path else ""
    return f"{sign} {shown(found.path)}{slash}{_change_text(found)}"


def _change_text(found: "Difference") -> str:
    before, after = found.before, found.after
    if before is None or after is None:
        return ""
    if found.kind.value == "metadata":
        changes = [
            (stat.filemode(before.mode), stat.filemode(after.mode)),
            (f"{before.uid}:{before.gid}", f"{after.uid}:{after.gid}"),
        ]
        told = [f"{old} -> {new}" for old, new in changes if old != new]
        if before.xattrs != after.xattrs:
            told.append("xattrs")
        if before.mtime_ns != after.mtime_ns and not before.is_directory:
            told.append("mtime")
        return f" ({', '.join(told)})"
    if found.kind.value == "modified" and before.size != after.size:
        return f" ({output.size(before.size)} -> {output.size(after.size)})"
    return ""


COMMANDS: list[click.Command] = [ls, cat, find, diff]
