"""Mounts for volumes: each is a supervised ``dedupfs mount`` of its own.

So they outlive the plugin, which asks the mount table which there are. Knows no volume.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dedupfs.errors import MountError
from dedupfs.fuse import mountpoints
from dedupfs.volumes.options import Options

log = logging.getLogger(__name__)

COMMAND_S_MAX = 110.0
"""Docker gives up after two minutes."""
_OF_OUR_MANAGER = ("LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_")


@dataclass(frozen=True, slots=True)
class Mounter:
    """Mounts below ``directory``, for all users with ``allow_other``."""

    directory: Path
    allow_other: bool

    def place(self, name: str) -> Path:
        """Return where a volume is mounted."""
        return self.directory / name

    def is_mounted(self, name: str) -> bool:
        """Whether there is a mount, dead or alive; it is not touched."""
        found = mountpoints.mount_at(self.place(name))
        return found is not None and found.is_ours

    def ensure(self, name: str, options: Options) -> None:
        """Return when the volume's mount answers.

        Raises:
            MountError: it cannot be mounted.
        """
        place = self.place(name)
        found = mountpoints.mount_at(place)
        if found is not None and found.is_ours and not mountpoints.is_stale(found):
            return
        if found is None:  # a dead mount could not be looked at; ``dedupfs mount`` takes it away
            try:
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as exc:
                raise MountError(f"cannot make {place}: {exc.strerror}") from exc
        words = ["mount", options.store, os.fspath(place)]
        if options.read_only:
            words.append("--read-only")
        elif options.ephemeral:
            words.append("--ephemeral")
        else:
            words += ["--view", options.view]
        if options.snapshot and not options.view:  # a view was made over it
            words += ["--snapshot", options.snapshot]
        if options.limit_bytes is not None and options.ephemeral:
            words += ["--limit", str(options.limit_bytes)]
        if self.allow_other:
            words.append("--allow-other")
        _run(words)

    def end(self, name: str) -> None:
        """Unmount, and wait until the daemon has put everything away.

        A mount that lives on in somebody's mount namespace keeps its daemon: that is not waited
        for, and nothing is taken away from it.

        Raises:
            MountError: it cannot be unmounted.
        """
        try:
            _run(["umount", os.fspath(self.place(name))])
        except MountError:
            if self.is_mounted(name):
                raise
            log.warning("unmounted, but its daemon goes on volume=%s", name)

    def forget(self, name: str) -> None:
        """Remove the mount point of a volume that is not mounted.

        Raises:
            MountError: it cannot be removed.
        """
        try:
            self.place(name).rmdir()
        except FileNotFoundError:
            return
        except OSError as exc:
            raise MountError(f"cannot remove {self.place(name)}: {exc.strerror}") from exc


def _run(words: Sequence[str]) -> None:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(_OF_OUR_MANAGER)
    }
    command = [sys.executable, "-P", "-m", "dedupfs", *words]
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=COMMAND_S_MAX,
        )
    except OSError as exc:
        raise MountError(f"cannot run {sys.executable}: {exc.strerror}") from exc
    except subprocess.TimeoutExpired as exc:
        raise MountError(f"dedupfs {words[0]} took more than {COMMAND_S_MAX:.0f} s") from exc
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise MountError(said[-1].removeprefix("dedupfs: ") if said else f"{words[0]} failed")
