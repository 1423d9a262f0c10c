"""A supervisor dies: its daemon goes on, is found, and ends in order.

Method: SIGKILL to the supervisor of a real mount.
"""

from __future__ import annotations

import os
import signal

import pytest

from dedupfs.namespace import live
from tests.fuse.harness import END_TIMEOUT_S
from tests.takeover.conftest import Mount

pytestmark = pytest.mark.fuse


@pytest.mark.parametrize("options", [(), ("--read-only",)], ids=["view", "read-only"])
def test_a_daemon_without_supervisor_is_found_and_waited_for(
    mount: Mount, options: tuple[str, ...]
) -> None:
    mount("first").end()
    alone = mount("alone", *options)
    before = alone.running()
    supervisor = live.ProcessEnd(before.supervisor)
    os.kill(before.supervisor, signal.SIGKILL)
    assert supervisor.wait(END_TIMEOUT_S)
    supervisor.close()
    if options:
        mount("other").end()  # it clears away what dead mounts left
    running = alone.running()
    assert (running.pid, running.supervisor) == (before.pid, 0)
    daemon = live.ProcessEnd(before.pid)
    alone.command("umount", alone.path)
    assert daemon.wait(0), "umount came back before the daemon had ended"
    daemon.close()
