"""All entries below a directory of a snapshot, in path order. Knows no file system."""

from collections.abc import Callable, Iterator

from dedupfs.errors import CorruptError, MissingRecordError, StoreError
from dedupfs.model import TreeEntry, is_file_name
from dedupfs.namespace.trees import TreeReader, tree_id_of


def is_possible(entry: TreeEntry) -> bool:
    """Whether a file can have the name and type of an entry: only a crafted tree has others."""
    return is_file_name(entry.name) and not entry.is_whiteout


def entries_below(
    reader: TreeReader,
    top: TreeEntry,
    *,
    depth_max: int | None = None,
    on_lost: Callable[[bytes, StoreError], None] | None = None,
) -> Iterator[tuple[bytes, TreeEntry]]:
    """Yield (path below ``top``, entry), a directory in front of what is in it.

    Hard links are yielded as they are; ``TreeReader.resolve`` gives their inode. So are names that
    no file can have; nothing below such a directory is. ``on_lost`` hears of each directory of
    which something cannot be read; without it that ends everything.
    """

    def children(directory: TreeEntry, prefix: bytes) -> Iterator[TreeEntry]:
        tree_id = tree_id_of(directory)
        if on_lost is None:
            return reader.entries(tree_id)
        return reader.sound_entries(tree_id, lambda exc: on_lost(prefix[:-1], exc))

    stack = [(b"", children(top, b""))]
    while stack:
        prefix, entries = stack[-1]
        try:
            entry = next(entries, None)
        except (CorruptError, MissingRecordError) as exc:
            where = (top.name + b"/" + prefix).decode("utf-8", "surrogateescape")
            raise type(exc)(f"cannot read {where}: {exc}") from exc
        if entry is None:
            stack.pop()
            continue
        path = prefix + entry.name
        yield path, entry
        is_deeper = depth_max is None or len(stack) < depth_max
        if is_deeper and is_possible(entry) and entry.is_directory:
            stack.append((path + b"/", children(entry, path + b"/")))
