"""All entries below a directory of a snapshot, in path order. Knows no file system."""

from collections.abc import Iterator

from dedupfs.model import TreeEntry
from dedupfs.namespace.trees import TreeReader, tree_id_of


def entries_below(
    reader: TreeReader, top: TreeEntry, *, depth_max: int | None = None
) -> Iterator[tuple[bytes, TreeEntry]]:
    """Yield (path below ``top``, entry), a directory in front of what is in it.

    Hard links are yielded as they are; ``TreeReader.resolve`` gives their inode.
    """
    stack = [(b"", reader.entries(tree_id_of(top)))]
    while stack:
        prefix, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            continue
        path = prefix + entry.name
        yield path, entry
        if entry.is_directory and (depth_max is None or len(stack) < depth_max):
            stack.append((path + b"/", reader.entries(tree_id_of(entry))))
