"""One mount from its first daemon to another program: what ``dedupfs mount`` runs, and becomes.

SIGUSR2 makes a supervisor execute the dedupfs that is installed now, with the baton in its
environment: its process id stays, and callers wait as they do when a daemon dies. Knows how
processes follow each other; not what they do. Source: execve(2).
"""

import base64
import logging
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click
import msgspec

from dedupfs.cli import background
from dedupfs.errors import MountError, UsageError
from dedupfs.fuse import server
from dedupfs.fuse.notifying import ServiceManager
from dedupfs.fuse.relay import Baton
from dedupfs.fuse.supervisor import supervise
from dedupfs.namespace.handover import VERSION

log = logging.getLogger(__name__)

PROBE_S_MAX = 30.0
_ENVIRONMENT = "DEDUPFS_BATON"


class _Order(msgspec.Struct, frozen=True):
    """What the next program has to do."""

    store_path: str
    mountpoint: str
    options: server.MountOptions
    baton: Baton
    log_level: int
    log_format: str = "text"


@dataclass(frozen=True, slots=True)
class SupervisedMount:
    """A store, a prepared mount point, and how it is mounted."""

    store_path: Path
    mountpoint: Path
    options: server.MountOptions
    leave_group: bool = False
    """The first daemon mounts in the process group that it was started in, then leaves it."""
    log_format: str = "text"

    def serve(self, baton: Baton | None, ready: server.Ready) -> None:
        """Be a daemon: the first one, or one that goes on."""
        if baton is None:
            told = background.leaving_group(ready) if self.leave_group else ready
            server.serve(self.store_path, self.mountpoint, self.options, told)
        else:
            server.resume(self.store_path, self.mountpoint, self.options, ready, baton)

    def is_possible(self) -> bool:
        """Whether the dedupfs that is installed now starts, and knows what it would be given."""
        probe = [*_COMMAND, "--probe", str(VERSION)]
        try:
            return subprocess.run(probe, check=False, timeout=PROBE_S_MAX).returncode == 0
        except (OSError, subprocess.TimeoutExpired) as exc:
            log.error("%s: %s", probe, exc)
            return False

    def execute(self, baton: Baton) -> NoReturn:
        """Become that dedupfs."""
        level = logging.getLogger().level
        order = _Order(
            str(self.store_path),
            str(self.mountpoint),
            self.options,
            baton,
            log_level=level,
            log_format=self.log_format,
        )
        for fd in baton.fds.values():
            os.set_inheritable(fd, True)
        encoded = base64.b64encode(msgspec.msgpack.encode(order)).decode()
        os.execve(sys.executable, _COMMAND, {**os.environ, _ENVIRONMENT: encoded})


_COMMAND = [sys.executable, "-P", "-m", "dedupfs", "go-on"]
"""-P, or a mount on /dedupfs would be searched for modules, which waits for ourselves."""


@click.command("go-on", hidden=True)
@click.option("--probe", type=int, help="Only say whether this version would be understood.")
def go_on(probe: int | None) -> None:
    """Go on as the supervisor of a mount that another program has supervised so far."""
    if probe is not None:
        if probe != VERSION:
            raise UsageError(f"a handover of version {probe}: this dedupfs knows {VERSION}")
        return
    encoded = os.environ.pop(_ENVIRONMENT, None)
    if encoded is None:
        raise UsageError("this command is for 'dedupfs mount', which hands a mount over by it")
    order = msgspec.msgpack.decode(base64.b64decode(encoded), type=_Order)
    logging.getLogger().setLevel(order.log_level)
    background.log_to_stderr(order.log_format)
    if order.options.metrics:
        with suppress(MountError):  # not installed any more: daemons say so
            import_metrics()
    for fd in order.baton.fds.values():
        os.set_inheritable(fd, False)
    mount = SupervisedMount(
        Path(order.store_path),
        Path(order.mountpoint),
        order.options,
        log_format=order.log_format,
    )
    subject = f"{order.store_path} on {order.mountpoint}"
    manager = ServiceManager.from_environment(os.environ, os.getpid(), subject)
    supervise(mount.serve, lambda: None, mount, order.baton, manager)


def import_metrics() -> None:
    """Import what answers Prometheus, once for all daemons.

    Raises:
        MountError: it is not installed.
    """
    try:
        import dedupfs.fuse.scraping  # noqa: F401
    except ImportError as exc:
        raise MountError(
            f"--metrics needs prometheus-client: pip install 'dedupfs[metrics]' ({exc})"
        ) from exc


COMMANDS: list[click.Command] = [go_on]
