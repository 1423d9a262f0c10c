"""Forgetting a deduped directory that its user has deleted: nobody can undo it any more.

What it held becomes its snapshot's alone, which stays, so that nothing is lost even if the
directory was not deleted but moved. Changes nothing outside of the store.
"""

import os
from pathlib import Path

from dedupfs.checkout.dedupe.state import keep_snapshot, shown_of
from dedupfs.checkout.dedupe.take import Link
from dedupfs.errors import UsageError
from dedupfs.namespace.checkouts import Registration
from dedupfs.store import Store

_DISK = b"disk "


def note_of_disk(top_fd: int) -> bytes:
    """Return what a manifest notes of the file system of a directory, to know it again."""
    return _DISK + b"%x" % os.fstatvfs(top_fd).f_fsid


def forget(store: Store, registration: Registration, *, force: bool = False) -> list[str]:
    """End the registration of a directory that is gone; return the snapshots that stay.

    Raises:
        UsageError: it is there, or may be on a disk that is not mounted (unless ``force``).
    """
    manifest = registration.manifest
    assert manifest is not None
    directory = Path(os.fsdecode(manifest.directory))
    if os.path.lexists(directory):
        raise UsageError(
            f"{directory} is there: 'dedupfs dedupe --undo {store.path} {directory}' ends it"
        )
    # Hard links and files that share blocks keep their bytes by themselves.
    if Link(shown_of(manifest).link) is Link.SYMLINK and not force:
        _require_same_disk(directory, manifest.detail)
    names = keep_snapshot(store, manifest, directory)
    registration.drop()
    return names


def _require_same_disk(directory: Path, note: bytes) -> None:
    """Refuse when the directory may come back with a disk that is not mounted just now."""
    try:
        parent_fd = os.open(directory.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise UsageError(
            f"{directory} may be on a disk that is not mounted: {directory.parent}: "
            f"{exc.strerror}; --force if it is gone for good"
        ) from exc
    try:
        found = note_of_disk(parent_fd)
    finally:
        os.close(parent_fd)
    if found != note:
        raise UsageError(
            f"{directory} may be on a disk that is not mounted: {directory.parent} is not on the "
            "one where it was, as far as one can tell; --force if it is gone for good"
        )
