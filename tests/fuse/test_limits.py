"""Going over a limit in a mount: EDQUOT for that view alone, and a way out.

Method: daemons of their own, without a supervisor: each write(2) is a request, so it has the answer
itself. With one the kernel hands bytes over later: tests/takeover/test_limits.py.
"""

import errno
import os
import random
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.namespace import live
from dedupfs.store.limits import write_limit
from dedupfs.store.store import Store
from tests.fuse.harness import Daemons, Mounted, eventually

LIMIT_BYTES = 4 << 20
PIECE_BYTES = 256 << 10

pytestmark = pytest.mark.fuse


def noise(seed: int, length: int = PIECE_BYTES) -> bytes:
    return random.Random(seed).randbytes(length)


def fill(path: Path) -> int:
    """Write until the view says no; return how many bytes it took."""
    with path.open("wb", buffering=0) as file:
        for number in range(10 * LIMIT_BYTES // PIECE_BYTES):
            try:
                file.write(noise(number))
            except OSError as exc:
                assert exc.errno == errno.EDQUOT  # noqa: PT017
                return number * PIECE_BYTES
    raise AssertionError("nothing said no")


def set_limit(mounted: Mounted, limit_bytes: int | None, view: str = "") -> None:
    """Set a limit and have its daemon know, as the command does."""
    with Store.open(mounted.store) as store:
        where = mounted.store / "views" / view if view else mounted.store
        write_limit(store.disk, where, limit_bytes)
    for daemon in live.daemons(mounted.store):
        live.ask(daemon.socket_path, live.LookAtLimits())


def assert_sound(store_path: Path) -> None:
    with Store.open(store_path) as store:
        report = check(store)
    assert report.ok, [str(problem) for problem in report.problems]


def test_a_view_over_its_limit_is_refused_alone(daemons: Daemons) -> None:
    limited = daemons.start("limited", view="limited", limit_bytes=LIMIT_BYTES)
    free = daemons.start("free", view="free")
    (limited.path / "kept").write_bytes(b"kept")
    taken = fill(limited.path / "big")
    assert LIMIT_BYTES // 2 < taken < LIMIT_BYTES
    assert (limited.path / "big").stat().st_size == taken
    set_limit(limited, taken // 2, "limited")
    with pytest.raises(OSError, match="quota") as refused:
        (limited.path / "new").mkdir()
    assert refused.value.errno == errno.EDQUOT
    set_limit(limited, LIMIT_BYTES, "limited")
    (free.path / "big").write_bytes(noise(99, 2 * LIMIT_BYTES))
    assert (limited.path / "kept").read_bytes() == b"kept"
    assert (limited.path / "big").read_bytes()[:PIECE_BYTES] == noise(0)
    (limited.path / "kept").rename(limited.path / "renamed")
    os.truncate(limited.path / "big", 1000)
    (limited.path / "big").unlink()
    assert fill(limited.path / "again") > taken // 2, "what was deleted is room again"
    for mounted in (limited, free):
        mounted.end()
    assert_sound(limited.store)


def test_a_live_mount_takes_a_limit_over_at_once(daemons: Daemons) -> None:
    mounted = daemons.start()
    (mounted.path / "before").write_bytes(noise(1, LIMIT_BYTES))
    set_limit(mounted, LIMIT_BYTES // 2, "default")
    with pytest.raises(OSError, match="quota"):
        (mounted.path / "after").write_bytes(noise(2))
    found = os.statvfs(mounted.path)
    assert found.f_blocks * found.f_frsize == LIMIT_BYTES // 2
    assert found.f_bavail == 0
    set_limit(mounted, 4 * LIMIT_BYTES, "default")
    (mounted.path / "after").write_bytes(noise(2))
    set_limit(mounted, None, "default")
    set_limit(mounted, LIMIT_BYTES // 2)
    with pytest.raises(OSError, match="quota"):
        (mounted.path / "third").write_bytes(noise(3))
    (mounted.path / "before").unlink()
    # The kernel says that it has forgotten a file when it likes; the next call may overtake that.
    assert eventually(lambda: os.statvfs(mounted.path).f_bavail > 0)
    (mounted.path / "third").write_bytes(noise(3))
    mounted.end()
    assert_sound(mounted.store)


def test_a_damaged_limit_is_told_and_the_old_one_counts(daemons: Daemons) -> None:
    mounted = daemons.start(limit_bytes=LIMIT_BYTES)
    (mounted.store / "views" / "default" / "limit.json").write_text("{}")
    (daemon,) = live.daemons(mounted.store)
    with pytest.raises(Exception, match="damaged"):
        live.ask(daemon.socket_path, live.LookAtLimits())
    assert fill(mounted.path / "big") < LIMIT_BYTES
    set_limit(mounted, 8 * LIMIT_BYTES, "default")
    mounted.end()
    assert_sound(mounted.store)
