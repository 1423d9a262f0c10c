"""Of the tasks that wait for requests one looks for them, the others are parked.

Method: a socket that holds requests stands for the device, and a coroutine that counts who is in it
for pyfuse3's own waiting, after which pyfuse3 starts another task when nobody is.
"""

from __future__ import annotations

import socket

import pytest

pyfuse3 = pytest.importorskip("pyfuse3")
trio = pytest.importorskip("trio")
pytest.importorskip("trio.testing")

from dedupfs.fuse import waiting  # noqa: E402
from dedupfs.fuse.waiting import Waiter  # noqa: E402

REQUESTS = 200
TASKS = 3


class Device:
    """Requests that wait in a socket, and pyfuse3's tasks that are parked until there are some."""

    def __init__(self) -> None:
        self.ours, self.kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.parked = 0
        self._lock = trio.Lock()

    async def park(self) -> bool:
        self.parked += 1
        try:
            async with self._lock:
                await trio.lowlevel.wait_readable(self.ours)
        finally:
            self.parked -= 1
        return True

    def close(self) -> None:
        self.ours.close()
        self.kernels.close()


@pytest.mark.parametrize("turn_ns", [0, waiting.TURN_NS])
async def test_while_one_task_gives_way_the_others_stay_parked(
    turn_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()
    monkeypatch.setattr(waiting, "TURN_NS", turn_ns)
    monkeypatch.setattr(pyfuse3, "_wait_fuse_readable", device.park)
    waiter = Waiter(device.ours.fileno(), lambda: True, lambda: None)
    parked: list[int] = []

    async def work() -> None:
        while await waiter.wait():
            device.ours.recv(1)
            parked.append(device.parked)
            if len(parked) == REQUESTS:
                nursery.cancel_scope.cancel()
                return

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(work)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(REQUESTS):
                device.kernels.send(b"r")
    device.close()
    assert parked == [TASKS - 1] * REQUESTS
