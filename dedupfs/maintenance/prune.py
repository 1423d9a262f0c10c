"""Pruning the snapshots of a store: what rules say about the catalogue, and doing it.

The rules are ``retention.py``. Here they meet the catalogue: what is removed is what they say about
it in the moment of the removal, whatever others do meanwhile. Frees no space: that is gc's.
"""

import fnmatch
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from dedupfs.errors import NotFoundError, StoreBusyError
from dedupfs.maintenance.forecast import Forecast
from dedupfs.maintenance.retention import Candidate, Decision, Moment, Policy, decide, spare
from dedupfs.maintenance.usage import disk_usage
from dedupfs.model import SnapshotInfo
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store

log = logging.getLogger(__name__)

_ATTEMPTS_MAX = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of each snapshot that was considered, as it was seen then.

    ``missing_bytes``: by how much all that may go is too little for the budget.
    """

    decisions: Sequence[Decision]
    staying: Sequence[SnapshotInfo]
    going: Sequence[SnapshotInfo]
    missing_bytes: int = 0

    @property
    def names(self) -> list[str]:
        """The names of those that go, the oldest first."""
        return [info.name for info in self.going]


@dataclass(frozen=True, slots=True)
class Budget:
    """How large the store may be, and how much its disk must have left; None: as it comes."""

    store: Store
    store_bytes_max: int | None = None
    free_bytes_min: int | None = None

    def apply(self, decisions: Sequence[Decision]) -> tuple[list[Decision], int]:
        """Let only as many go, the oldest first, as the budget asks for; and what is missing."""
        with self.store.reading() as txn:
            forecast = Forecast(self.store, txn)
            needed_bytes = self._excess_bytes() - forecast.garbage.disk_bytes

            def freed_bytes(names: Sequence[str]) -> int:
                return forecast.exclusive(names).disk_bytes

            spared = spare(decisions, lambda names: freed_bytes(names) >= needed_bytes)
            going = [one.candidate.name for one in spared if not one.stays]
            return spared, max(0, needed_bytes - freed_bytes(going))

    def _excess_bytes(self) -> int:
        """Return how much too large the store is, whatever makes it so."""
        excess = [0]
        if self.store_bytes_max is not None:
            excess.append(disk_usage(self.store.path).disk_bytes - self.store_bytes_max)
        if self.free_bytes_min is not None:
            status = os.statvfs(self.store.path)
            excess.append(self.free_bytes_min - status.f_bavail * status.f_frsize)
        return max(excess)


def plan(
    catalog: SnapshotCatalog,
    policy: Policy,
    moment: Moment,
    patterns: Sequence[str] = (),
    budget: Budget | None = None,
) -> Plan:
    """Say what would become of the snapshots, or of those that match one of ``patterns``.

    With a ``budget`` those that no rule keeps may stay, as long as it allows.

    Raises:
        NotFoundError: a pattern matches no snapshot. UsageError: see ``retention.decide``.
    """
    considered = _matching(catalog.list(), patterns)
    infos = {info.name: info for info in considered}
    decisions = decide(policy, [candidate_of(info) for info in considered], moment)
    missing_bytes = 0
    if budget is not None:
        decisions, missing_bytes = budget.apply(decisions)
    staying = [infos[one.candidate.name] for one in decisions if one.stays]
    going = sorted(
        (infos[one.candidate.name] for one in decisions if not one.stays),
        key=lambda info: (info.created_ns, info.sequence),
    )
    return Plan(decisions, staying, going, missing_bytes)


def prune(
    catalog: SnapshotCatalog,
    policy: Policy,
    moment: Moment,
    patterns: Sequence[str] = (),
    budget: Budget | None = None,
) -> Plan:
    """Remove the snapshots that no rule keeps, all at once or none; return what was done.

    When another process changes one of those considered meanwhile (a pin, a tag, a removal), the
    rules are applied anew: the last copy is not removed for the sake of one that is gone.

    Raises:
        StoreBusyError: others changed them again and again.
    """
    for _ in range(_ATTEMPTS_MAX):
        planned = plan(catalog, policy, moment, patterns, budget)
        if not planned.going:
            return planned
        changed = catalog.remove_unless_changed(planned.going, planned.staying)
        if changed is None:
            return planned
        log.info("pruning anew, for another process changed snapshot=%s", changed.name)
    raise StoreBusyError(
        "other processes kept changing the snapshots; nothing was removed: prune again"
    )


def candidate_of(info: SnapshotInfo) -> Candidate:
    """Return what rules know of a snapshot."""
    return Candidate(info.name, info.created_ns, info.sequence, info.tags, info.pinned)


def _matching(infos: Sequence[SnapshotInfo], patterns: Sequence[str]) -> list[SnapshotInfo]:
    if not patterns:
        return list(infos)
    names: set[str] = set()
    for pattern in patterns:
        found = [info.name for info in infos if fnmatch.fnmatchcase(info.name, pattern)]
        if not found:
            raise NotFoundError(f"no snapshot is called, or matches, {pattern!r}")
        names.update(found)
    return [info for info in infos if info.name in names]
