"""Dedupe and undo cut short anywhere: every byte is readable at its path, and the next run goes on.

A run is a process of its own that ends, as SIGKILL ends one, just before its n-th system call that
Python tells of (audit events: open, link, rename, chmod, ioctl...) or exchange of names.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from dedupfs.checkout.dedupe.run import dedupe
from dedupfs.checkout.dedupe.undo import undo
from dedupfs.errors import NotFoundError, UsageError
from dedupfs.maintenance.gc import collect
from dedupfs.store import Store
from tests.checkout.deduped import (
    contents_of,
    make_copies,
    options,
    require_sound,
    seen_in,
)
from tests.conftest import Scale
from tests.transfer.trees import make_store

pytestmark = pytest.mark.unmeasured

CALLS = (
    *("open", "os.link", "os.symlink", "os.remove", "os.rename", "os.chmod", "os.utime"),
    *("os.truncate", "fcntl.ioctl", "fcntl.fcntl", "fcntl.flock", "ctypes.get_errno"),
    *("os.setxattr", "os.removexattr", "os.chown", "os.mkdir"),
)
KILLED = 9


def run_cut(work: Callable[[], object], at: int) -> bool:
    """Run in a process that ends before its call number ``at``; return whether it came so far."""
    pid = os.fork()
    if pid == 0:
        seen = 0

        def hook(event: str, _args: object) -> None:
            nonlocal seen
            if event in CALLS:
                seen += 1
                if seen == at:
                    os._exit(KILLED)

        code = 1
        try:
            sys.addaudithook(hook)
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, KILLED), "the run failed by itself"
    return status == KILLED


def points(scale: Scale, calls_max: int) -> list[int]:
    """Return where to cut: some places in a short run, every place in a long one."""
    count = scale(12, calls_max)
    seed = 5 if os.environ.get("CI") == "true" else random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201  to cut there again
    return sorted(random.Random(seed).sample(range(1, calls_max + 1), min(count, calls_max)))


def files_in(directory: Path) -> dict[str, object]:
    """Return what is seen but for directories: a cut may come before one has its time back."""
    seen = seen_in(directory)
    return {name: what for name, what in seen.items() if not (directory / name).is_dir()}


def deduping(store: Path, directory: Path, link: str) -> Callable[[], object]:
    def work() -> object:
        with Store.open(store) as opened:
            return dedupe(opened, directory, options(link))

    return work


def undoing(store: Path, directory: Path) -> Callable[[], object]:
    def work() -> object:
        with Store.open(store) as opened:
            return undo(opened, directory)

    return work


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_a_dedupe_cut_anywhere_is_gone_on_with(memory_path: Path, link: str, scale: Scale) -> None:
    cuts = 0
    for number, at in enumerate(points(scale, 420)):
        ckpts, path = memory_path / f"ckpts-{number}", memory_path / f"store-{number}"
        ckpts.mkdir()
        make_copies(ckpts)
        os.link(ckpts / "ckpt-1" / "model" / "model-0.bin", ckpts / "zz")
        before, seen = contents_of(ckpts), files_in(ckpts)
        make_store(path).close()
        cuts += run_cut(deduping(path, ckpts, link), at)
        now = contents_of(ckpts)
        assert {name: now.get(name) for name in before} == before, f"cut at {at}"
        with Store.open(path) as store:
            if number % 2:
                collect(store)
            require_sound(store)
            if number % 3 == 0:
                dedupe(store, ckpts, options(link))
                assert contents_of(ckpts) == before, f"cut at {at}"
                require_sound(store)
            try:
                assert undo(store, ckpts).is_complete
            except NotFoundError:
                pass  # it had not begun
            except UsageError:
                dedupe(store, ckpts, options(link))
                assert undo(store, ckpts).is_complete
            assert files_in(ckpts) == seen, f"cut at {at}"
            collect(store)
            require_sound(store)
            assert not list(path.glob("packs/*/*.file")), f"cut at {at}"
    assert cuts


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_an_undo_cut_anywhere_is_gone_on_with(memory_path: Path, link: str, scale: Scale) -> None:
    cuts = 0
    for number, at in enumerate(points(scale, 300)):
        ckpts, path = memory_path / f"ckpts-{number}", memory_path / f"store-{number}"
        ckpts.mkdir()
        make_copies(ckpts)
        os.link(ckpts / "ckpt-1" / "model" / "model-0.bin", ckpts / "zz")
        before, seen = contents_of(ckpts), files_in(ckpts)
        with make_store(path) as store:
            dedupe(store, ckpts, options(link))
        cuts += run_cut(undoing(path, ckpts), at)
        now = contents_of(ckpts)
        assert {name: now.get(name) for name in before} == before, f"cut at {at}"
        with Store.open(path) as store:
            if number % 2:
                collect(store)
            require_sound(store)
            with suppress(NotFoundError):  # it was cut behind its end
                assert undo(store, ckpts).is_complete
            assert files_in(ckpts) == seen, f"cut at {at}"
            collect(store)
            require_sound(store)
    assert cuts


@pytest.mark.root
@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_an_ordinary_user_can_do_it_all(memory_path: Path, link: str) -> None:
    os.chown(memory_path, 12345, 12345)

    def work() -> None:
        os.setgroups([])
        os.setgid(12345)
        os.setuid(12345)
        ckpts = memory_path / "ckpts"
        ckpts.mkdir()
        make_copies(ckpts)
        seen = seen_in(ckpts)
        with make_store(memory_path / "store") as store:
            assert not dedupe(store, ckpts, options(link)).problems
            with pytest.raises(PermissionError):
                (ckpts / "ckpt-0" / "model" / "model-0.bin").open("ab")
            require_sound(store)
            assert undo(store, ckpts).is_complete
            assert seen_in(ckpts) == seen
            require_sound(store)

    if not str(memory_path).startswith("/dev/shm/"):
        pytest.skip("its directory lies below one of root's")
    assert not run_cut(work, 1 << 30)
