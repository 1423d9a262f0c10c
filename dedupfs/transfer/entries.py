"""All entries below a directory of a snapshot, in path order. Knows no file system."""

from collections.abc import Iterator

from dedupfs.model import TreeEntry, is_file_name
from dedupfs.namespace.trees import TreeReader, tree_id_of


def is_possible(entry: TreeEntry) -> bool:
    """Whether a file can have the name and type of an entry: only a crafted tree has others."""
    return is_file_name(entry.name) and not entry.is_whiteout


def entries_below(
    reader: TreeReader, top: TreeEntry, *, depth_max: int | None = None
) -> Iterator[tuple[bytes, TreeEntry]]:
    """Yield (path below ``top``, entry), a directory in front of what is in it.

    Hard links are yielded as they are; ``TreeReader.resolve`` gives their inode. So are names that
    no file can have; nothing below such a directory is.
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
        is_deeper = depth_max is None or len(stack) < depth_max
        if is_deeper and is_possible(entry) and entry.is_directory:
            stack.append((path + b"/", reader.entries(tree_id_of(entry))))
