"""Control groups of its own for one machine, which go with it.

Two machines in the group of whoever started them would take each other's units for their own.
Source: cgroups(7); systemd's docs/CGROUP_DELEGATION.md.
"""

from __future__ import annotations

import errno
import os
import select
import time
from pathlib import Path

REMOVAL_LIMIT_S = 60
SYSTEMD = "name=systemd"
"""The hierarchy of the first version in which systemd keeps its processes."""


def own_directories() -> list[Path]:
    """Return where this process is in each hierarchy that a systemd uses."""
    places = {}
    for line in _lines("/proc/self/cgroup"):
        _number, controllers, path = line.split(":", 2)
        places[controllers] = Path(path)
    found = []
    for line in _lines("/proc/self/mountinfo"):
        mount, _dash, file_system = line.partition(" - ")
        root, mountpoint = (Path(word) for word in mount.split()[3:5])
        kind, _source, options = file_system.split(maxsplit=2)
        hierarchy = {"cgroup2": "", "cgroup": SYSTEMD}.get(kind)
        if hierarchy in places and (kind == "cgroup2" or SYSTEMD in options.split(",")):
            place = places[hierarchy]
            if not place.is_relative_to(root):
                raise FileNotFoundError(f"{place} is not in {mountpoint}, which has {root}")
            found.append(mountpoint / place.relative_to(root))
    return found


def _lines(name: str) -> list[str]:
    """Read a table whose paths may be any bytes, and may hold all but newlines as they are."""
    return Path(name).read_bytes().decode(errors="surrogateescape").rstrip("\n").split("\n")


class Groups:
    """``directories``: one in each hierarchy, all of the same name."""

    def __init__(self, name: str) -> None:
        self.directories = [parent / name for parent in own_directories()]

    def make(self) -> None:
        """Raise OSError where that is not allowed."""
        for directory in self.directories:
            directory.mkdir(exist_ok=True)

    def remove(self) -> None:
        """Remove them, once the last killed process has left."""
        deadline = time.monotonic() + REMOVAL_LIMIT_S
        for top in self.directories:
            for directory, _directories, _files in os.walk(top, topdown=False):
                while True:
                    try:
                        os.rmdir(directory)
                    except OSError as exc:
                        if exc.errno != errno.EBUSY or time.monotonic() > deadline:
                            raise
                    else:
                        break
                    select.select([], [], [], 0.02)
