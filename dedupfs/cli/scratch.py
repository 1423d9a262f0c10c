"""Scratch directories of ``run --engine overlay``: what a command writes, until it is taken in.

Below the directory of the user's choice:

    dedupfs-run-XXXXXXXX/   of one run, 0700
      lock                  held as long as the run or any process of its command lives
      lower/                where the snapshot is mounted, in the run's namespace alone
      upper/  work/         overlayfs's
      note.json             how to understand it; renamed, which no full disk refuses, to
      kept.json             when the command has succeeded, and this is to become a snapshot
      boot                  which boot of the machine that is, until all of it has been synced

Knows no mount. Source: docs/cli.md, "run".
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dedupfs.errors import MountError, SourceError, UsageError
from dedupfs.fuse import mountpoints, overlay, private

if TYPE_CHECKING:
    from dedupfs.model import SnapshotInfo

PREFIX = "dedupfs-run-"
LOCK_NAME = "lock"
NOTE_NAME = "note.json"
KEPT_NAME = "kept.json"
BOOT_NAME = "boot"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Kept(msgspec.Struct, frozen=True):
    """How an upper directory is to be understood."""

    snapshot: str
    root: bytes
    """The VIEW_ROOT payload of what it is over."""
    prefix: bytes
    mode: int
    uid: int
    gid: int
    xattrs: tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True)
class Scratch:
    """One scratch directory, which this process has."""

    path: Path
    lock: int
    is_kept: bool = False

    def note(self, kept: Kept) -> None:
        """Note what ``keep`` will need, before a command can fill the disk.

        Raises:
            MountError: refused.
        """
        try:
            (self.path / BOOT_NAME).write_bytes(_BOOT_ID.read_bytes())
            (self.path / NOTE_NAME).write_bytes(msgspec.json.encode(kept))
        except OSError as exc:
            raise MountError(f"cannot write in {self.path}: {exc.strerror}") from exc

    def keep(self) -> None:
        """From now on nothing but the user, or having been taken in, removes it.

        Raises:
            MountError: it is not there any more.
        """
        try:
            os.rename(self.path / NOTE_NAME, self.path / KEPT_NAME)
        except OSError as exc:
            raise MountError(f"cannot rename in {self.path}: {exc.strerror}") from exc
        self.is_kept = True

    def let_go(self) -> None:
        """It has become a snapshot: whoever comes first removes it."""
        with suppress(OSError):  # then only this process does
            os.unlink(self.path / KEPT_NAME)
        self.is_kept = False

    def sync(self) -> None:
        """Let what is kept outlive a power cut; the overlay over it is gone, and synced nothing.

        Raises:
            DedupfsError, OSError: the disk refused.
        """
        mountpoints.write_back(self.path)
        os.unlink(self.path / BOOT_NAME)
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Remove it, unless it is kept."""
        if not self.is_kept:
            remove(self.path)
        os.close(self.lock)


def make(base: Path | None) -> Scratch:
    """Make one below ``base``, or where temporary files go, and remove those of dead runs there.

    Raises:
        MountError: refused.
    """
    base = Path(os.path.realpath(tempfile.gettempdir() if base is None else base))
    try:
        remove_dead(base)
        while (made := _make_one(base)) is None:
            pass  # another run took it for dead before it was locked
    except OSError as exc:
        raise MountError(
            f"cannot make a directory for what is written in {base}: {exc.strerror}; give one "
            "with --upper-dir"
        ) from exc
    return made


def _make_one(base: Path) -> Scratch | None:
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    try:
        lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.fstat(lock).st_nlink:
            os.close(lock)
            return None
        (path / overlay.LOWER).mkdir(mode=0o700)
    except BaseException:
        os.close(lock)
        remove(path)
        raise
    return Scratch(path, lock)


def remove_dead(base: Path) -> None:
    """Remove what runs of this user left that were killed; what one was about to commit stays."""
    with os.scandir(base) as found:
        names = [entry.name for entry in found if entry.name.startswith(PREFIX)]
    for name in names:
        path = base / name
        with suppress(OSError):  # another user's, or just being removed by its own run
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                _remove_if_dead(path)


def _remove_if_dead(path: Path) -> None:
    """Remove it if nobody holds its lock, or if it is empty: so one begins and ends."""
    try:
        lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        path.rmdir()
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (path / KEPT_NAME).exists():
            remove(path)
    finally:
        os.close(lock)


def remove(path: Path) -> None:
    """Remove a scratch directory, whatever modes a command gave to what is in it; the lock last.

    Stopped in between, it is removed by the next run.

    Raises:
        OSError: something cannot be removed.
    """
    for name in sorted(os.listdir(path), key=lambda name: (name == LOCK_NAME, name != KEPT_NAME)):
        inside = path / name
        if name in (overlay.UPPER, overlay.WORK):
            _remove_tree(inside)
        elif name == overlay.LOWER:
            inside.rmdir()
        else:
            inside.unlink()
    path.rmdir()


def _remove_tree(top: Path) -> None:
    try:
        shutil.rmtree(top)
    except PermissionError:
        os.chmod(top, 0o700)
        for where, directories, _files in os.walk(top):  # a directory before what is in it
            for name in directories:
                inside = os.path.join(where, name)
                if not os.path.islink(inside):
                    os.chmod(inside, 0o700)
        shutil.rmtree(top)


def take_in(
    store_path: Path, path: Path, kept: Kept, name: str, tags: Mapping[str, str]
) -> "SnapshotInfo":
    """Make the snapshot ``name`` of what the overlay with this scratch directory showed.

    Raises:
        DedupfsError: as ``transfer.takein.take_in`` does.
    """
    from dedupfs.format.tree import decode_view_root
    from dedupfs.store.store import Store
    from dedupfs.transfer import takein

    top = kept.mode, kept.uid, kept.gid
    fd = os.open(path / overlay.UPPER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        upper = takein.Upper(fd, kept.prefix, top, kept.xattrs)
        base = decode_view_root(kept.root).root
        source = f"run on {kept.snapshot}"
        with Store.open(store_path) as store:
            return takein.take_in(store, base, upper, name, tags=tags, source=source)
    finally:
        os.close(fd)


def take_in_kept(
    store_path: Path, path: Path, name: str, tags: Mapping[str, str]
) -> "SnapshotInfo":
    """Do what a run could not do at its end, and remove the scratch directory.

    Raises:
        UsageError: it is none, or a run still has it. SourceError: the machine went down before
            it was synced. DedupfsError: else as ``take_in``.
    """
    try:
        kept = msgspec.json.decode((path / KEPT_NAME).read_bytes(), type=Kept)
        lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, msgspec.DecodeError) as exc:
        raise UsageError(f"{path} is not what a 'dedupfs run' has kept: {exc}") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(lock)
        raise UsageError(f"{path} belongs to a 'dedupfs run' that still runs") from exc
    try:
        _require_whole(path)
        if os.geteuid() != 0:
            with suppress(MountError):  # then what forbids its owner to read it cannot be taken in
                private.enter()
        info = take_in(store_path, path, kept, name, tags)
        try:
            remove(path)
        except OSError as exc:
            raise MountError(f"{name} was made, but {path} cannot be removed: {exc}") from exc
    finally:
        os.close(lock)
    return info


def _require_whole(path: Path) -> None:
    """Refuse what a power cut may have torn: overlayfs has synced none of it."""
    try:
        boot = (path / BOOT_NAME).read_bytes()
    except FileNotFoundError:
        return
    if boot != _BOOT_ID.read_bytes():
        raise SourceError(
            f"the machine went down before {path} was synced, so some of it may be missing: what "
            f"there is lies in {path / overlay.UPPER}"
        )
