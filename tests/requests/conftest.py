"""Mounts of one store whose requests are counted: with our handshake and as plain pyfuse3."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.store import Store
from tests.fuse.harness import Daemons
from tests.maintenance.samples import import_directory, noise
from tests.requests.counting import Counted

BIG_BYTES = 8 << 20
DIRECTORIES, FILES = 3, 4


@pytest.fixture(scope="package")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemons]:
    """Daemons for a store with one snapshot, ``tree``, of a directory ``known``.

    The store is checked in the end.
    """
    top = tmp_path_factory.mktemp("requests")
    tree = top / "tree" / "known"
    for directory in range(DIRECTORIES):
        (tree / f"d{directory}").mkdir(parents=True)
        for file in range(FILES):
            (tree / f"d{directory}" / f"f{file}").write_bytes(b"content" * 300 * (file + 1))
    (tree / "big").write_bytes(noise("big", BIG_BYTES))
    (tree / "link").symlink_to("d0/f0")
    with Store.create(top / "store") as store:
        import_directory(store, tree.parent, "tree")
    started = Daemons(top)
    try:
        yield started
    finally:
        started.end_all()
    assert started.complaints() == []
    with Store.open(top / "store") as store:
        report = check(store)
    assert report.ok, report.problems


class Mounts:
    """Mounts of the snapshot itself, each made when it is first asked for.

    Not of the catalogue, whose root other processes may change: the kernel keeps it for a second.
    """

    def __init__(self, daemons: Daemons) -> None:
        self._daemons = daemons
        self._made: dict[str, Counted] = {}

    def get(self, kind: str) -> Counted:
        """Return the mount of a kind, such as "plain read-only"."""
        if kind not in self._made:
            plain, read_only = "plain" in kind, "read-only" in kind
            mounted = self._daemons.start(
                kind, view=kind.replace(" ", "-"), snapshot="tree", read_only=read_only,
                traced=True, plain=plain,
            )  # fmt: skip
            os.stat(mounted.path)
            self._made[kind] = Counted(mounted, plain=plain, read_only=read_only)
        return self._made[kind]

    def close(self) -> None:
        for counted in self._made.values():
            counted.close()


@pytest.fixture(scope="package")
def mounts(daemons: Daemons) -> Iterator[Mounts]:
    made = Mounts(daemons)
    yield made
    made.close()


@pytest.fixture(params=["handshake", "plain", "handshake read-only", "plain read-only"])
def mount(mounts: Mounts, request: pytest.FixtureRequest) -> Counted:
    """A mount of any kind."""
    return mounts.get(request.param)


@pytest.fixture(params=["handshake", "plain"])
def writable(mounts: Mounts, request: pytest.FixtureRequest) -> Counted:
    """A mount that can be written."""
    return mounts.get(request.param)


@pytest.fixture(params=["handshake read-only", "plain read-only"])
def fixed(mounts: Mounts, request: pytest.FixtureRequest) -> Counted:
    """A mount that cannot be written."""
    return mounts.get(request.param)


@pytest.fixture
def place(writable: Counted, tmp_path: Path) -> Path:
    """A new directory in the mount, which the kernel knows all about."""
    directory = writable.path / tmp_path.name
    directory.mkdir()
    os.stat(directory)
    return directory
