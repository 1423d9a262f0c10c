"""What the file system below a store can do, tried with a small file beside it.

Makes one temporary directory and removes it. Asks no store; what is tried is what
``store.realdisk`` and LMDB rely on. Source: fallocate(2), ioctl_ficlonerange(2), preadv2(2),
flock(2), link(2).
"""

import ctypes
import errno
import fcntl
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from dedupfs.maintenance.findings import Finding, Grade
from dedupfs.namespace.room import is_low

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "fuse.sshfs"})
PASSING = {
    "tmpfs": ("what is stored is gone when the machine ends", "put the store on a disk"),
    "ramfs": ("what is stored is gone when the machine ends", "put the store on a disk"),
    "overlay": (
        "in a container that is its own layer, slower, and gone with the container",
        "put the store on a volume",
    ),
    "fuse.dedupfs": (
        "a store in a mount of dedupfs: each byte goes through two daemons",
        "put the store on a disk",
    ),
}
"""File systems on which a store works, and why one should not be there."""
_VIRTUAL = ("loop", "nbd", "ram", "vd", "xvd", "zram")
"""Block devices that say nothing about the disk behind them, or something wrong."""
BLOCK_DEVICES = Path("/sys/dev/block")
_PROBE_BYTES = 1 << 20
_PUNCH_AND_KEEP_SIZE = 3
_FICLONE = 0x40049409
_RWF_DONTCACHE = 0x80
"""Linux 6.14; io_uring and pwritev2 know it by this number: include/uapi/linux/fs.h."""
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.EXDEV)


def look_at_ground(store: Path, fs_type: str) -> Iterator[Finding]:
    """Probe the file system (of type ``fs_type``) where a store lies, or is to be made."""
    place = existing(store)
    yield file_system(fs_type)
    turning = disk(os.stat(place).st_dev, BLOCK_DEVICES)
    if turning is not None:
        yield turning
    # Of a store, what is not kept.
    scratch = place / "run" if os.path.isdir(place / "run") else place
    try:
        with tempfile.TemporaryDirectory(prefix=".dedupfs-doctor-", dir=scratch) as name:
            yield from _tried(Path(name))
    except OSError as exc:
        yield Finding(
            "writing",
            Grade.FAULT,
            f"cannot write below {place}: {exc.strerror}",
            "mount the file system writable, make room, or become the store's owner",
        )
    yield room(place)


def existing(store: Path) -> Path:
    """Return the store, or the nearest directory above that is there."""
    place = Path(os.path.abspath(store))
    while not os.path.isdir(place):  # also what may not be looked at
        place = place.parent
    return place


def file_system(fs_type: str) -> Finding:
    """Tell whether LMDB may be trusted there: it maps its file and locks in shared memory."""
    if fs_type in NETWORK:
        return Finding(
            "file system",
            Grade.FAULT,
            f"{fs_type} is a network file system: the index (LMDB) may be damaged there",
            "put the store on a disk of this machine",
        )
    if fs_type in PASSING:
        why, advice = PASSING[fs_type]
        return Finding("file system", Grade.LESS, f"{fs_type}: {why}", advice)
    return Finding("file system", Grade.OK, fs_type)


def disk(device: int, block_devices: Path) -> Finding | None:
    """Tell whether the disk turns; None where there is no one disk below (btrfs, tmpfs, NFS)."""
    found = block_devices / f"{os.major(device)}:{os.minor(device)}"
    if os.path.basename(os.path.realpath(found)).startswith(_VIRTUAL):
        return None
    for place in (found, found / ".."):  # a partition has no queue of its own
        try:
            turns = (place / "queue" / "rotational").read_text().strip() == "1"
        except OSError:
            continue
        if turns:
            return Finding(
                "disk",
                Grade.LESS,
                "a spinning disk, or one that says so: each duplicate that lies elsewhere is a "
                "seek when it is read",
                "an SSD; or a larger --chunk-size of init",
            )
        return Finding("disk", Grade.OK, "does not turn")
    return None


def room(place: Path) -> Finding:
    """Tell whether the disk is about to be full."""
    found = os.statvfs(place)
    free_bytes = found.f_bavail * found.f_frsize
    said = f"{free_bytes >> 20:,} MiB of {found.f_blocks * found.f_frsize >> 20:,} MiB are free"
    if is_low(place):
        advice = "make room: 'dedupfs gc STORE', 'dedupfs prune STORE', or delete something else"
        return Finding("room", Grade.LESS, f"only {said}", advice)
    return Finding("room", Grade.OK, said)


def _tried(directory: Path) -> Iterator[Finding]:
    path = directory / "probe"
    path.write_bytes(b"\1" * _PROBE_BYTES)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        yield _graded(
            "index",
            Grade.FAULT,
            lambda: _maps_and_locks(descriptor),
            "files can be mapped and locked",
            "files cannot be shared in memory or locked: the index (LMDB) does not work",
            "put the store on another file system: ext4, XFS, btrfs",
        )
        yield _graded(
            "hard links",
            Grade.FAULT,
            lambda: os.link(path, directory / "other"),
            "there are hard links",
            "no hard links: large files cannot be stored",
            "put the store on another file system: ext4, XFS, btrfs",
        )
        yield _graded(
            "reads",
            Grade.LESS,
            lambda: _preadv(descriptor),
            "reads can be told not to wait",
            "reads cannot be told not to wait (RWF_NOWAIT): each one costs a thread's wake-up",
        )
        yield _graded(
            "writes",
            Grade.LESS,
            lambda: _pwritev(descriptor),
            "writes can pass the page cache by",
            "writes cannot pass the page cache by (RWF_DONTCACHE): an import evicts what others "
            "read",
        )
        yield _graded(
            "reflinks",
            Grade.LESS,
            lambda: _clone(descriptor, directory / "clone"),
            "files can share blocks",
            "files cannot share blocks: checkout and dedupe make hard or symbolic links, and "
            "import --adopt makes files read-only",
            "XFS and btrfs can",
        )
        yield _graded(
            "holes",
            Grade.LESS,
            lambda: _punch(descriptor),
            "holes give blocks back",
            "no holes: what is deleted comes back only when gc rewrites whole packs, and sparse "
            "files take their whole size",
            "put the store on another file system: ext4, XFS, btrfs, tmpfs",
        )
    finally:
        os.close(descriptor)


def _graded(
    name: str, grade: Grade, probe: Callable[[], object], well: str, less: str, advice: str = ""
) -> Finding:
    try:
        probe()
    except OSError as exc:
        if exc.errno in _UNSUPPORTED or isinstance(exc, PermissionError):  # vfat: link is EPERM
            return Finding(name, grade, less, advice)
        raise
    return Finding(name, Grade.OK, well)


def _maps_and_locks(descriptor: int) -> None:
    with mmap.mmap(descriptor, mmap.PAGESIZE) as mapped:
        mapped[0] = 2
        mapped.flush()
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _preadv(descriptor: int) -> None:
    try:
        os.preadv(descriptor, [bytearray(4096)], 0, os.RWF_NOWAIT)
    except BlockingIOError:  # it would have waited, and said so
        return


def _pwritev(descriptor: int) -> None:
    os.pwritev(descriptor, [b"\1" * 4096], 0, _RWF_DONTCACHE)


def _clone(descriptor: int, path: Path) -> None:
    with path.open("wb") as target:
        fcntl.ioctl(target.fileno(), _FICLONE, descriptor)


def _punch(descriptor: int) -> None:
    """Punch half of the file and see whether its blocks are gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    os.fsync(descriptor)
    before = os.fstat(descriptor).st_blocks
    if libc.fallocate(descriptor, _PUNCH_AND_KEEP_SIZE, 0, _PROBE_BYTES // 2):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    os.fsync(descriptor)
    if os.fstat(descriptor).st_blocks >= before:
        raise OSError(errno.EOPNOTSUPP, "no block came back")
