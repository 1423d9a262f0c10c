"""What prunes would free, by some rules that people use, and what the disk would get back.

Bytes of records come from sums that are known already (``sharing``). What the disk gets back needs
gc to be played through, which is done for as many questions as there is time for.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from dedupfs.errors import NotFoundError, StoreError
from dedupfs.maintenance.forecast import Forecast
from dedupfs.maintenance.retention import Candidate, Last, Moment, Periodic, Policy, decide
from dedupfs.maintenance.sharing import Held, Sharing
from dedupfs.model import SnapshotInfo

FORECAST_RECORDS_MAX = 120_000
"""How many records gc is played through for: at a tenth of a millisecond each, some ten seconds."""
PRUNES: tuple[tuple[str, Policy], ...] = (
    *((f"--keep-last {n}", Policy((Last(n),))) for n in (1, 2, 5, 10, 20, 50, 100)),
    (
        "--keep-last 3 --keep-daily 7 --keep-weekly 4",
        Policy((Last(3), Periodic("daily", 7), Periodic("weekly", 4))),
    ),
)
"""The prunes that are played through, as far as they remove anything."""


@dataclass(frozen=True, slots=True)
class Prune:
    """What a rule would remove: ``freed_bytes`` of records as they are stored.

    ``frees_bytes``: what the disk gets back; None where that was too much to
    play through.
    """

    rule: str
    kept: int
    removed: tuple[str, ...]
    freed_bytes: int
    frees_bytes: int | None = None


class BlockForecast:
    """What the disk would get back, for as many questions as there is time for."""

    def __init__(self, forecast: Forecast) -> None:
        self._forecast = forecast
        self._records_left = FORECAST_RECORDS_MAX

    def frees(
        self, held: Held, snapshots: Iterable[str] = (), views: Iterable[str] = ()
    ) -> int | None:
        """Return it for these; ``held`` is what only they hold."""
        if held.records > self._records_left:
            return None
        self._records_left -= held.records
        try:
            return self._forecast.exclusive(snapshots, views).disk_bytes
        except (NotFoundError, StoreError):
            return None  # removed meanwhile, or its row is damaged

    def frees_each(self, asked: Sequence[tuple[set[str], Held]]) -> list[int | None]:
        """Return it for sets of snapshots; what contains what came before it goes on from there."""
        found: list[int | None] = [None] * len(asked)
        left = sorted(range(len(asked)), key=lambda place: len(asked[place][0]))
        while left:
            chain: list[int] = []
            for place in left:
                if not chain or asked[chain[-1]][0] <= asked[place][0]:
                    chain.append(place)
            left = [place for place in left if place not in chain]
            while chain and asked[chain[-1]][1].records > self._records_left:
                chain.pop()
            if not chain:
                continue
            self._records_left -= asked[chain[-1]][1].records
            sets = [asked[place][0] for place in chain]
            steps = [sets[0], *(later - earlier for earlier, later in pairwise(sets))]
            with suppress(NotFoundError, StoreError):  # removed meanwhile, or damaged
                for place, disk_bytes in zip(chain, self._forecast.growing(steps), strict=True):
                    found[place] = disk_bytes
        return found


def play_prunes(
    snapshots: Sequence[SnapshotInfo], sharing: Sharing, blocks: BlockForecast, now_ns: int
) -> list[Prune]:
    """Play the rules through, in the time zone of this process as ``prune`` does."""
    candidates = [
        Candidate(info.name, info.created_ns, info.sequence, info.tags, info.pinned)
        for info in snapshots
    ]
    found: list[tuple[str, set[str], Held]] = []
    for rule, policy in PRUNES:
        decisions = decide(policy, candidates, Moment(now_ns))
        going = {d.candidate.name for d in decisions if not d.stays}
        if going:
            held = sharing.only_in(n for n, info in enumerate(snapshots) if info.name in going)
            found.append((rule, going, held))
    frees = blocks.frees_each([(going, held) for _, going, held in found])
    return [
        Prune(
            rule,
            len(snapshots) - len(going),
            tuple(info.name for info in snapshots if info.name in going),
            held.stored_bytes,
            frees_bytes,
        )
        for (rule, going, held), frees_bytes in zip(found, frees, strict=True)
    ]
