"""Which checkout a command means: by its directory's mark, by its number, or all of a store."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import completed_with, open_store
from dedupfs.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from dedupfs.format.manifest import Manifest
    from dedupfs.store import Store

IN_STORE = click.option(
    "--store",
    "store_path",
    type=click.Path(path_type=Path),
    shell_complete=completed_with("directory"),
    help="The store, if DIR has no mark.",
)


@contextmanager
def checkout_at(
    place: Path, store_path: Path | None, *, to_change: bool = True
) -> "Iterator[tuple[Store, Manifest]]":
    """Open the store of a checkout, which is named by its directory or its number."""
    from dedupfs.checkout.make import KIND
    from dedupfs.checkout.place import find_checkout, read_mark
    from dedupfs.namespace.checkouts import read_checkout

    if store_path is None:
        found = read_mark(place)
        if found is None:
            raise NotFoundError(
                f"{place} is no checkout, or its file system kept no mark: name the --store"
            )
        store_path = found.store
    with open_store(store_path) as opened:
        if str(place).isdecimal() and not place.exists():
            manifest = read_checkout(opened, int(str(place)))
        else:
            manifest = find_checkout(opened, place)
        if to_change and manifest.kind != KIND:
            raise UsageError(f"{place} was made by 'dedupfs {manifest.kind}', which ends it, too")
        yield opened, manifest


def all_checkouts(store: "Store") -> "list[Manifest]":
    """Return the checkouts of a store; say what is damaged of them."""
    from dedupfs.namespace.checkouts import read_checkouts

    manifests, damaged = read_checkouts(store)
    for found in damaged:
        output.note(f"checkout {found.number}: {found.why}")
    return manifests
