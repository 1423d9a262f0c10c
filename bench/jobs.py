"""What does a job cost: a build in a writable view of its own, from nothing until nothing is left?

The build writes in place: an object beside each file of a tree, and a line at the end of each tenth
file. Timed with everything that a job needs: mounts or copies, and taking them away.
"""

from __future__ import annotations

import sys
from functools import partial

from bench.commands import dedupfs, remove, run
from bench.datasets import small_tree
from bench.harness import Harness, Record, rotated, seconds_of
from bench.peers import SNAPSHOT, Dedupfs, FuseOverlay, Native, Overlay, Peer, taking_part

FILES = 3000
SECONDS = 90
BUILD = """
import os
names = [os.path.join(top, name) for top, _, names in os.walk(".") for name in names]
for number, name in enumerate(names):
    with open(name, "rb") as source, open(name + ".o", "wb") as made:
        made.write(source.read().swapcase())
    if number % 10 == 0:
        with open(name, "ab") as changed:
            changed.write(b"built\\n")
"""
_BUILD = (sys.executable, "-c", BUILD)


class _Run(Dedupfs):
    """``dedupfs run``: its daemon takes what is written."""

    engine = "fuse"

    def job(self) -> None:
        options = ("--upper-dir", self.place) if self.engine == "overlay" else ()
        dedupfs("run", self.store, SNAPSHOT, "--engine", self.engine, *options, "--", *_BUILD)


class _RunInOverlay(_Run):
    """The same: the kernel's overlayfs takes it."""

    name = "dedupfs, overlay"
    engine = "overlay"


class _Copy(Native):
    name = "cp -a"

    def job(self) -> None:
        copy = self.place / "copy"
        run("cp", "-a", self.source, copy)
        run(*_BUILD, cwd=copy)
        remove(copy)


KINDS: tuple[type[Peer], ...] = (_Run, _RunInOverlay, Overlay, FuseOverlay, _Copy)


def measure(harness: Harness) -> None:
    reasons: dict[str, str] = {}
    record = Record(["job"], [kind.name for kind in KINDS])
    with harness.borrowed("jobs") as place:
        tree = small_tree(place / "tree", harness.scale.count(FILES))
        count = sum(path.is_file() for path in tree.rglob("*"))
        peers = [kind(place / kind.name.replace(" ", "-")) for kind in KINDS]
        with taking_part(peers, tree, reasons, harness.leave_out) as ready:
            for number in harness.each_round(SECONDS):
                for peer in rotated(ready, number):
                    record.turn("job", peer.name, number, partial(seconds_of, partial(_job, peer)))
    for name, why in reasons.items():
        record.fail(name, why)
    for result in record.conclude(f"{count} files"):
        harness.add(result)


def _job(peer: Peer) -> None:
    if isinstance(peer, _Run | _Copy):
        peer.job()
        return
    with peer.mounted() as top:
        run(*_BUILD, cwd=top)
