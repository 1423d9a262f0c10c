"""A session: a peer is mounted freshly, and the steps of a workload follow each other in it.

In each round every peer has one session. "Cold": the kernel's caches were dropped before; "warm":
the same was done right before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.backups import Borg, Restic
from bench.commands import BenchError, drop_caches, reason, why_not_cold
from bench.harness import Harness, Record, rotated, seconds_of
from bench.peers import Bindfs, Btrfs, Dedupfs, FuseOverlay, Native, Overlay, Peer, S3ql, Xfs
from bench.peers import taking_part as peers_taking_part

ALL: tuple[type[Peer], ...] = (
    *(Native, Dedupfs, Overlay, FuseOverlay, Bindfs, Xfs, Btrfs, Borg, Restic, S3ql),
)


@dataclass(frozen=True)
class Visit:
    """A peer while it is mounted: where, and in which round."""

    peer: Peer
    top: Path
    number: int


@dataclass(frozen=True)
class Step:
    """One measured step: returns its value. ``writes``: not for read-only peers."""

    key: str
    work: Callable[[Visit], float]
    writes: bool = False


def cold(work: Callable[[Visit], float]) -> Callable[[Visit], float]:
    """Return ``work`` with the kernel's caches dropped before."""

    def measured(visit: Visit) -> float:
        drop_caches()
        return work(visit)

    return measured


def warm(work: Callable[[Visit], float]) -> Callable[[Visit], float]:
    """Return ``work`` for after its cold run, which is made up for where there was none."""

    def measured(visit: Visit) -> float:
        if why_not_cold():
            work(visit)
        return work(visit)

    return measured


def sessions(
    harness: Harness,
    source: Path,
    steps: Sequence[Step],
    *,
    seconds: float,
    notes: Mapping[str, str] | str = "",
    kinds: Sequence[type[Peer]] = ALL,
) -> None:
    """Run the steps in a session of each peer, round by round, and report all questions."""
    started = time.monotonic()
    reasons: dict[str, str] = {}
    keys = [step.key for step in steps]
    record = Record(keys, [kind.name for kind in kinds])
    with harness.borrowed("peers") as place:
        peers = [kind(place / kind.name.replace(" ", "-")) for kind in kinds]
        with peers_taking_part(peers, source, reasons, harness.leave_out) as ready:
            spent = dict.fromkeys([peer.name for peer in ready], 0.0)
            made_ready = time.monotonic() - started
            for number in harness.each_round(seconds, started):
                for peer in rotated(ready, number):
                    if number < peer.rounds_max:
                        took = seconds_of(partial(_session, record, peer, steps, number))
                        spent[peer.name] += took
                        if number + 1 >= peer.rounds_max:
                            harness.once_seconds += took
    for name, why in reasons.items():
        record.fail(name, why)
    for result in record.conclude(notes):
        harness.add(result)
    each = ", ".join(f"{name} {value:.0f}" for name, value in spent.items())
    print(f"  seconds: making ready {made_ready:.0f}, {each}", flush=True)


def _session(record: Record, peer: Peer, steps: Sequence[Step], number: int) -> None:
    try:
        with peer.mounted() as top:
            visit = Visit(peer, top, number)
            for step in steps:
                if step.writes and not peer.writable:
                    record.fail(peer.name, "read-only", [step.key])
                elif not record.has_failed(step.key, peer.name):
                    record.turn(step.key, peer.name, number, partial(step.work, visit))
    except (BenchError, OSError) as error:
        record.fail(peer.name, reason(error))
