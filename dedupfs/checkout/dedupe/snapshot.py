"""The snapshot of what a dedupe took: every file as it was, attributes, hard links and all.

It is what ``--undo`` restores, so it is made before the first file is replaced. Puts trees; knows
no links and no packs' files.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from dedupfs.checkout.dedupe.below import parent_of
from dedupfs.model import TreeEntry
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store
from dedupfs.transfer.builder import TreeBuilder
from dedupfs.transfer.entries import entries_below
from dedupfs.transfer.metadata import read_xattrs

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Taken:
    """One name of a file that the store has in one piece, and what the file was.

    ``linked``: what its names have in common; None for the one name of a file.
    """

    path: bytes
    entry: TreeEntry
    pack: int
    linked: tuple[int, int] | None = None


def put_root(store: Store, top_fd: int, taken: Iterable[Taken]) -> TreeEntry:
    """Put the trees that hold these files alone; return the root's entry."""
    builder = TreeBuilder(store)
    stack: list[bytes] = []
    builder.enter(b"", os.fstat(top_fd), read_xattrs(top_fd), b"")
    for one in sorted(taken, key=lambda one: one.path.split(b"/")):
        *steps, name = one.path.split(b"/")
        while stack != steps[: len(stack)]:
            builder.leave()
            stack.pop()
        while len(stack) < len(steps):
            stack.append(steps[len(stack)])
            _enter(builder, top_fd, b"/".join(stack))
        entry = msgspec.structs.replace(one.entry, name=name, slot=0, nlink=1)
        if one.linked is None:
            builder.add(entry)
            continue
        link_id = builder.links.find(one.linked)
        if link_id is None:
            link_id = builder.links.add(one.linked, entry, None)
        builder.add(builder.links.name_entry(name, link_id))
    for _ in range(len(stack) + 1):
        builder.leave()
    assert builder.root is not None
    return builder.root


def _enter(builder: TreeBuilder, top_fd: int, path: bytes) -> None:
    with parent_of(top_fd, path) as (directory_fd, name):
        fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=directory_fd)
        try:
            builder.enter(name, os.fstat(fd), read_xattrs(fd), path)
        finally:
            os.close(fd)


def files_of(store: Store, root: TreeEntry) -> Iterator[tuple[bytes, TreeEntry, bytes | None]]:
    """Yield path, entry and, where it has several names, what they have in common."""
    reader = TreeReader(store)
    for path, entry in entries_below(reader, root):
        if entry.is_link:
            yield path, reader.resolve(root, entry), entry.content
        elif entry.is_file:
            yield path, entry, None
