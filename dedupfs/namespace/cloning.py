"""Cloning: an unused directory of a view gets the tree of a snapshot, whatever the tree's size.

One edit says that the directory's entry has another content from now on; nothing below is read,
copied or numbered. Knows no request. Source: docs/architecture.md, "Paths"; applying.py.
"""

import msgspec

from dedupfs.errors import (
    CrossScopeError,
    InvalidError,
    NotADirectoryNameError,
    NotEmptyError,
    NotFoundError,
    NotPermittedError,
    StaleError,
    UsageError,
)
from dedupfs.format.journal import Put
from dedupfs.model import TreeEntry
from dedupfs.namespace.directory import CATALOG_SLOTS_START, CatalogDirectory, Directory
from dedupfs.namespace.journaling import record
from dedupfs.namespace.rows import check_name
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.state import ViewState
from dedupfs.namespace.trees import links_id_of

CLONE = b"user.dedupfs.clone"
"""The extended attribute that, set on an unused directory, makes it a clone of what it names."""


def is_unused(directory: Directory) -> bool:
    """Whether nothing was ever in a directory, so that it can become a clone.

    Being empty is not enough: what was in it took numbers that the clone's files would get again.
    """
    return directory.next_slot == 1


def clone(state: ViewState, inode: int, source: bytes, now_ns: int) -> None:
    """Make the unused directory ``inode`` a clone of ``source``: ``SNAPSHOT`` or ``SNAPSHOT:PATH``.

    It takes over all attributes of what it is a clone of. The snapshot is held back from gc until
    a fold has referred to it.

    Raises:
        InvalidError: ``source`` names nothing. NotFoundError, NotADirectoryNameError: no such
            directory. NotEmptyError, NotPermittedError: the directory cannot become one.
        CrossScopeError: hard links in there would lead out of it.
    """
    target = state.directory(inode)
    parent = _parent_of(target)
    root = _find(state, source)
    if links_id_of(root) is not None:
        if not isinstance(parent, CatalogDirectory):
            raise CrossScopeError("it holds hard links: clone it into the top of a catalogue")
    elif root.has_links:
        raise CrossScopeError("it holds hard links, which cannot leave their snapshot")
    _, named = state.locate(inode)
    entry = msgspec.structs.replace(root, name=named.name, slot=named.slot, ctime_ns=now_ns)
    try:
        state.hold(entry)
    except StaleError as exc:
        raise NotFoundError(f"{source!r} was removed just now") from exc
    record(state, now_ns, [Put(parent.number, entry)])


def _parent_of(target: Directory) -> Directory:
    if target.removed:
        raise NotFoundError("the directory was removed")
    if target.parent is None:
        raise NotPermittedError("the root of a mount cannot become a clone")
    if not is_unused(target):
        raise NotEmptyError("only a directory that nothing was ever in can become a clone")
    from_catalog = isinstance(target.parent, CatalogDirectory)
    if from_catalog and target.entry.slot < CATALOG_SLOTS_START:
        raise NotPermittedError("a snapshot's own directory cannot become a clone")
    return target.parent


def _find(state: ViewState, source: bytes) -> TreeEntry:
    """Return the directory that ``SNAPSHOT[:PATH]`` names."""
    name, _, path = source.partition(b":")
    try:
        check_name(text := name.decode("ascii"))
    except (UnicodeDecodeError, UsageError) as exc:
        raise InvalidError(f"{source!r} is not of the form SNAPSHOT[:PATH]") from exc
    found = state.trees.walk_path(SnapshotCatalog(state.store).get(text).root, path)
    if not found.is_directory:
        raise NotADirectoryNameError(f"{source!r} is no directory")
    return found
