"""Directory trees for tests: Hypothesis draws a description, `build` makes it on disk."""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from dedupfs.store import Store
from dedupfs.transfer.ingest import IngestOptions

LARGE_BYTES = 64 * 1024
TRUSTING = IngestOptions(racy_ns=-(1 << 62))
"""Believes the times of files that were written a moment ago, as no user should."""
WARM = IngestOptions(racy_ns=3600 * 10**9)
"""Takes all that a test has written for written a moment ago, however long that took."""
IS_ROOT = os.geteuid() == 0


def make_store(path: Path, compression: str = "auto") -> Store:
    return Store.create(
        path,
        chunk_bytes_average=4096,
        compression=compression,
        verbatim_bytes_min=LARGE_BYTES,
        hash_seed=7,
    )


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


@dataclass(frozen=True)
class Run:
    """A stretch of a file: random bytes of a seed, zeros that are written, or a hole."""

    kind: str
    length: int
    seed: int = 0


@dataclass(frozen=True)
class Node:
    """An object of any type; ``link_to`` makes it one more name of an earlier object."""

    kind: str
    mode: int = 0o644
    mtime_ns: int = 0
    runs: tuple[Run, ...] = ()
    target: bytes = b""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    owner: tuple[int, int] = (0, 0)
    link_to: int | None = None
    children: dict[bytes, Node] = field(default_factory=dict)


names = st.binary(min_size=1, max_size=20).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
modes = st.integers(0, 0o7777).map(lambda mode: mode | 0o600)
times = st.integers(-(10**9), 4 * 10**9).flatmap(
    lambda seconds: st.integers(0, 10**9 - 1).map(lambda ns: seconds * 10**9 + ns)
)
runs = st.builds(
    Run,
    st.sampled_from(["data", "data", "zeros", "hole"]),
    st.one_of(st.integers(1, 3000), st.integers(1, 3 * LARGE_BYTES)),
    st.integers(0, 3),
)
xattrs = st.lists(
    st.tuples(st.sampled_from(["user.a", "user.b", "user.\udcff"]), st.binary(max_size=40)),
    max_size=2,
    unique_by=lambda pair: pair[0],
).map(tuple)
owners = st.tuples(st.integers(0, 70000), st.integers(0, 70000))


def _node(kind: str, **fields: st.SearchStrategy[object]) -> st.SearchStrategy[Node]:
    return st.builds(Node, st.just(kind), mtime_ns=times, owner=owners, **fields)


files = _node("file", mode=modes, runs=st.lists(runs, max_size=4).map(tuple), xattrs=xattrs)
symlinks = _node("symlink", target=st.binary(min_size=1, max_size=60).filter(lambda b: 0 not in b))
specials = st.sampled_from(["fifo", "socket", "device"]).flatmap(lambda k: _node(k, mode=modes))
links = st.builds(Node, st.just("link"), link_to=st.integers(0, 5))
leaves = st.one_of(files, files, files, symlinks, specials, links)
nothing: dict[bytes, Node] = {}
directories = st.recursive(
    st.just(nothing),
    lambda inner: st.dictionaries(
        names,
        st.one_of(
            leaves,
            _node("directory", mode=modes.map(lambda m: m | 0o700), children=inner, xattrs=xattrs),
        ),
        max_size=5,
    ),
    max_leaves=8,
)
trees = _node("directory", mode=modes.map(lambda m: m | 0o700), children=directories, xattrs=xattrs)


def build(directory: Path, tree: Node) -> None:
    """Make ``tree`` at ``directory``, which exists and is empty."""
    _fill(os.fsencode(directory), tree, [])


def _fill(path: bytes, node: Node, made: list[bytes]) -> None:
    for name, child in node.children.items():
        below = path + b"/" + name
        if child.kind == "directory":
            os.mkdir(below)
            _fill(below, child, made)
        elif child.kind == "link":
            if made and child.link_to is not None:
                with suppress(PermissionError):  # protected_hardlinks
                    os.link(made[child.link_to % len(made)], below, follow_symlinks=False)
        elif _make(below, child):
            made.append(below)
            _dress(below, child)
    _dress(path, node)


def _make(path: bytes, node: Node) -> bool:
    if node.kind == "file":
        with open(path, "wb") as file:
            for run in node.runs:
                if run.kind == "hole":
                    file.seek(run.length, os.SEEK_CUR)
                else:
                    is_data = run.kind == "data"
                    file.write(noise(run.seed, run.length) if is_data else bytes(run.length))
            file.truncate()
    elif node.kind == "symlink":
        os.symlink(node.target, path)
    elif node.kind == "fifo":
        os.mkfifo(path)
    elif node.kind == "socket":
        _make_socket(path)
    elif IS_ROOT:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    else:
        return False
    return True


def _make_socket(path: bytes) -> None:
    parent = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as server:  # the path of a socket is short
            server.bind(b"/proc/self/fd/%d/%s" % (parent, os.path.basename(path)))
    finally:
        os.close(parent)


def _dress(path: bytes, node: Node) -> None:
    is_link = node.kind == "symlink"
    if IS_ROOT:
        os.chown(path, *node.owner, follow_symlinks=False)
    for name, value in node.xattrs:
        os.setxattr(path, name, value)
    if not is_link:
        os.chmod(path, node.mode)
    os.utime(path, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)


def acl_bytes(user: int, permissions: int) -> bytes:
    """An access ACL: rw for the owner, ``permissions`` for one user, read for the rest."""
    nobody = 0xFFFFFFFF
    entries = [
        (0x01, 6, nobody),
        (0x02, permissions, user),
        (0x04, 4, nobody),
        (0x10, 6, nobody),
        (0x20, 4, nobody),
    ]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def differences(one: Path, other: Path) -> list[str]:
    """What rsync would have to change in ``other`` to make it ``one``; and times, links, holes."""
    command = [
        *("rsync", "-aHAX", "--checksum", "--delete", "--dry-run", "--itemize-changes"),
        f"{one}/",
        f"{other}/",
    ]
    found = subprocess.run(command, check=True, capture_output=True).stdout.splitlines()
    lines = [line.decode(errors="replace") for line in found]
    for path, status in sorted(_statuses(os.fsencode(one)).items()):
        again = os.lstat(os.path.join(os.fsencode(other), path))
        wanted = (status.st_mtime_ns, status.st_size if stat.S_ISREG(status.st_mode) else 0)
        got = (again.st_mtime_ns, again.st_size if stat.S_ISREG(again.st_mode) else 0)
        if wanted != got:
            lines.append(f"{path!r}: {wanted} became {got}")
        if stat.S_ISREG(status.st_mode) and again.st_blocks > status.st_blocks + 64:
            lines.append(f"{path!r}: {status.st_blocks} blocks became {again.st_blocks}")
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink != again.st_nlink:
            lines.append(f"{path!r}: {status.st_nlink} links became {again.st_nlink}")
    return lines


def _statuses(top: bytes) -> dict[bytes, os.stat_result]:
    found = {b".": os.lstat(top)}
    for directory, subdirectories, names_ in os.walk(top):
        for name in subdirectories + names_:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, top)] = os.lstat(path)
    return found
