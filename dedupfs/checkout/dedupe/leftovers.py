"""What a run that was cut short left under temporary names beside the files: found and removed.

Only what is certain to be in the store or in its place goes; anything else is told and stays.
"""

import os

from dedupfs.checkout.dedupe.below import parent_of
from dedupfs.checkout.dedupe.scan import TEMPORARY_PREFIX
from dedupfs.checkout.dedupe.swap import is_undo_name, pack_of_temporary, remove_leftover
from dedupfs.checkout.packs import pack_path
from dedupfs.store import Store
from dedupfs.transfer.report import Problems
from dedupfs.transfer.walk import Step, Walk


def remove_leftovers(
    store: Store, top_fd: int, problems: Problems, paths: list[bytes] | None = None
) -> int:
    """Remove leftovers (all below the directory, unless told which); return how many."""
    if paths is None:
        walk = Walk(top_fd, problems, one_file_system=True)
        paths = [
            level.child_path(name)
            for step, level, name, _ in walk
            if step is Step.OBJECT and name.startswith(TEMPORARY_PREFIX)
        ]
    removed = 0
    for path in paths:
        try:
            removed += _remove(store, top_fd, path, problems)
        except OSError as exc:
            problems.add_os_error(path, "a leftover that cannot be removed", exc)
    return removed


def _remove(store: Store, top_fd: int, path: bytes, problems: Problems) -> bool:
    name = path.rpartition(b"/")[2]
    pack = pack_of_temporary(name)
    if pack is None and not is_undo_name(name):
        return False  # somebody else's name
    with parent_of(top_fd, path) as (directory_fd, name):
        if pack is None:
            remove_leftover(directory_fd, name)
            return True
        try:
            pack_fd = os.open(pack_path(store, pack), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            pack_fd = -1
        try:
            target = os.fsencode(pack_path(store, pack))
            if remove_leftover(directory_fd, name, pack_fd, target):
                return True
        finally:
            if pack_fd >= 0:
                os.close(pack_fd)
    problems.add(
        path, "left by a run that was cut short, and not in the store as it is: look at it"
    )
    return False
