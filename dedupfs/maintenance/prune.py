"""Pruning the snapshots of a store: what rules say about the catalogue, and doing it.

The rules are ``retention.py``. Here they meet the catalogue: what is removed is what they say about
it in the moment of the removal, whatever others do meanwhile. Frees no space: that is gc's.
"""

import fnmatch
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from dedupfs.errors import NotFoundError, StoreBusyError
from dedupfs.maintenance.retention import Candidate, Decision, Moment, Policy, decide
from dedupfs.model import SnapshotInfo
from dedupfs.namespace.snapshots import SnapshotCatalog

log = logging.getLogger(__name__)

_ATTEMPTS_MAX = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of each snapshot that was considered, as it was seen then."""

    decisions: Sequence[Decision]
    staying: Sequence[SnapshotInfo]
    going: Sequence[SnapshotInfo]

    @property
    def names(self) -> list[str]:
        """The names of those that go, the oldest first."""
        return [info.name for info in self.going]


def plan(
    catalog: SnapshotCatalog, policy: Policy, moment: Moment, patterns: Sequence[str] = ()
) -> Plan:
    """Say what would become of the snapshots, or of those that match one of ``patterns``.

    Raises:
        NotFoundError: a pattern matches no snapshot. UsageError: see ``retention.decide``.
    """
    considered = _matching(catalog.list(), patterns)
    infos = {info.name: info for info in considered}
    decisions = decide(policy, [candidate_of(info) for info in considered], moment)
    staying = [infos[one.candidate.name] for one in decisions if one.stays]
    going = sorted(
        (infos[one.candidate.name] for one in decisions if not one.stays),
        key=lambda info: (info.created_ns, info.sequence),
    )
    return Plan(decisions, staying, going)


def prune(
    catalog: SnapshotCatalog, policy: Policy, moment: Moment, patterns: Sequence[str] = ()
) -> Plan:
    """Remove the snapshots that no rule keeps, all at once or none; return what was done.

    When another process changes one of those considered meanwhile (a pin, a tag, a removal), the
    rules are applied anew: the last copy is not removed for the sake of one that is gone.

    Raises:
        StoreBusyError: others changed them again and again.
    """
    for _ in range(_ATTEMPTS_MAX):
        planned = plan(catalog, policy, moment, patterns)
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
