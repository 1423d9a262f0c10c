"""Arguments that commands share, and how they are completed. Imports nothing heavy by itself."""

import datetime
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from dedupfs.errors import UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from dedupfs.model import SnapshotInfo, TreeEntry
    from dedupfs.namespace.trees import TreeReader
    from dedupfs.store import Store

Command = TypeVar("Command", bound=Callable[..., object])


def completed_with(kind: str) -> Callable[..., list["CompletionItem"]]:
    """Return what completes a parameter: a kind that ``candidates`` knows."""

    def complete(
        ctx: click.Context, _parameter: click.Parameter, incomplete: str
    ) -> list["CompletionItem"]:
        from dedupfs.cli import candidates

        return candidates.find(kind, ctx, incomplete)

    return complete


STORE = click.argument(
    "store",
    type=click.Path(readable=False, path_type=Path),
    shell_complete=completed_with("directory"),
)
STORES = click.argument(
    "stores",
    metavar="[STORE...]",
    nargs=-1,
    type=click.Path(path_type=Path),
    shell_complete=completed_with("directory"),
)
TAG = click.option(
    "--tag",
    "tags",
    metavar="K=V",
    multiple=True,
    shell_complete=completed_with("tag"),
    help="Tag the snapshot; repeatable.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, with exact bytes.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Change nothing; say what would be done.")

DEFAULT_VIEW = "default"


def snapshot_argument(name: str, metavar: str, **settings: object) -> Callable[[Command], Command]:
    """Return an argument that is completed with snapshots, and with paths in them."""
    return click.argument(
        name,
        metavar=metavar,
        shell_complete=completed_with("place" if ":" in metavar else "snapshot"),
        **settings,  # type: ignore[arg-type]
    )


def open_store(path: Path) -> "Store":
    """Open the store at ``path``."""
    from dedupfs.store import Store

    return Store.open(path)


def parse_tags(pairs: Iterable[str], option: str = "--tag ") -> dict[str, str]:
    """Return the tags that ``KEY=VALUE`` arguments set.

    Raises:
        UsageError: one has no ``=`` or no key, or is no UTF-8.
    """
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"{option}{pair!r} is not of the form KEY=VALUE")
        if any("\ud800" <= character <= "\udfff" for character in pair):
            raise UsageError(f"{option}{pair!r} is no UTF-8")
        tags[key] = value
    return tags


def parse_time(text: str) -> int:
    """Return the nanoseconds since 1970 of a time in ISO 8601 or of ``@SECONDS``.

    Raises:
        UsageError: it is neither, or not between 1970 and 2262.
    """
    try:
        seconds = (
            int(text[1:])
            if text.startswith("@")
            else datetime.datetime.fromisoformat(text).timestamp()  # local, if it names no zone
        )
        time_ns = int(seconds * 1_000_000) * 1000 if isinstance(seconds, float) else seconds * 10**9
    except (ValueError, OverflowError, OSError) as exc:
        raise UsageError(f"{text!r} is no time: give 2026-11-22T03:00 or @SECONDS") from exc
    if not 0 <= time_ns < 1 << 63:
        raise UsageError(f"{text!r} is not between 1970 and 2262")
    return time_ns


@dataclass(frozen=True, slots=True)
class Place:
    """A snapshot and an object in it. ``entry`` has its hard link resolved."""

    info: "SnapshotInfo"
    path: bytes
    entry: "TreeEntry"


def find_place(store: "Store", reader: "TreeReader", text: str) -> Place:
    """Return what ``SNAPSHOT[:PATH]`` names.

    Raises:
        NotFoundError, NotADirectoryNameError: there is no such thing.
    """
    from dedupfs.namespace.snapshots import SnapshotCatalog

    name, _, path_text = text.partition(":")
    path = os.fsencode(path_text).strip(b"/")
    info = SnapshotCatalog(store).get(name)
    return Place(info, path, reader.walk_path(info.root, path))


def find_directory(store: "Store", text: str) -> Place:
    """Return the directory that ``SNAPSHOT[:PATH]`` names.

    Raises:
        UsageError: it is no directory.
        NotFoundError, NotADirectoryNameError: there is no such thing.
    """
    from dedupfs.namespace.trees import TreeReader

    place = find_place(store, TreeReader(store), text)
    if not place.entry.is_directory:
        raise UsageError(f"{text} is no directory; dedupfs cat writes a file")
    return place
