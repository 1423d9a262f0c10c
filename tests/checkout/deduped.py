"""What the tests of dedupe share: trees with duplicates, and what is seen of them."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from pathlib import Path

from dedupfs.checkout.dedupe.run import DedupeOptions
from dedupfs.checkout.dedupe.take import Link
from dedupfs.maintenance.check import check
from dedupfs.maintenance.scrub import scrub
from dedupfs.store import Store

SIZE = 100_000
COPIES = 3


def options(link: str = "auto", **more: object) -> DedupeOptions:
    return DedupeOptions(Link(link), min_bytes=4096, **more)  # type: ignore[arg-type]


def make_copies(directory: Path, seed: int = 1) -> int:
    """Make a directory of checkpoints and their copies; return the bytes of the duplicates."""
    contents = {f"model-{n}.bin": random.Random(f"{seed} {n}").randbytes(SIZE) for n in range(2)}
    contents["index.json"] = b"{}" * 10
    for copy in range(COPIES):
        below = directory / f"ckpt-{copy}" / "model"
        below.mkdir(parents=True)
        for number, (name, data) in enumerate(contents.items()):
            (below / name).write_bytes(data)
            os.utime(below / name, ns=(10**18 + number, 10**18 + copy * 10**9 + 123_456_789))
        os.utime(below, ns=(10**18, 10**18 + copy))
    (directory / "alone.bin").write_bytes(random.Random(f"{seed} alone").randbytes(SIZE + 1))
    return 2 * (COPIES - 1) * SIZE


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def contents_of(directory: Path) -> dict[str, str]:
    """Return what a reader finds at each path, through whatever links."""
    return {
        str(path.relative_to(directory)): digest_of(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def seen_in(directory: Path) -> dict[str, object]:
    """Return everything that a user sees of a tree, and which names are one inode."""
    seen: dict[str, object] = {}
    inodes: dict[int, str] = {}
    for path in sorted([directory, *directory.rglob("*")]):
        status = path.lstat()
        name = str(path.relative_to(directory))
        same = inodes.setdefault(status.st_ino, name)
        what: object = None
        if stat.S_ISLNK(status.st_mode):
            what = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            what = digest_of(path)
        xattrs = {}
        if not stat.S_ISLNK(status.st_mode):
            xattrs = {key: os.getxattr(path, key) for key in os.listxattr(path)}
        owner = (status.st_uid, status.st_gid)
        seen[name] = (status.st_mode, owner, status.st_mtime_ns, same, what, xattrs)
    return seen


def require_sound(store: Store) -> None:
    report = check(store)
    assert report.ok, "\n".join(map(str, report.problems))
    assert not scrub(store).damage
