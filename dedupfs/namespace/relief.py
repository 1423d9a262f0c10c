"""Giving space back beside a mount: what folds let go of; and what others left, on a full disk.

In steps between which requests are answered (``store/pace``). Knows no name and no request.
"""

from dedupfs.namespace.room import is_low
from dedupfs.store.holes import Gained, punching
from dedupfs.store.owner import exclusive
from dedupfs.store.pace import Pace, Steps
from dedupfs.store.space import freeing, releasing_dead_owners
from dedupfs.store.store import Store

_FREE_FIRST, _FREE_LEAST, _FREE_MOST = 100, 10, 1000
"""How many records are freed at a time, since every request waits meanwhile: first, at least, and
at most."""
_HURRIED_LEAST = 100
"""At least so many where somebody waits for room: each transaction waits for the disk, which one
that is filled to the brim makes long, and a slice has some milliseconds of work with so many."""
_SLICE_RANGES = 256
ROOM_LOCK = "room"
"""The lock of the one daemon that looks for garbage when the disk runs low."""


class Relief:
    """Frees and punches for one mount; a read-only one does nothing."""

    def __init__(self, store: Store, *, read_only: bool) -> None:
        self._store = store
        self._read_only = read_only
        self.is_waited_for = False
        """Whether somebody waits for room: all that is under way hurries."""
        self._pace = Pace(_FREE_FIRST, least=_FREE_LEAST, most=_FREE_MOST)
        self._hurried = Pace(_FREE_FIRST, least=_HURRIED_LEAST, most=_FREE_MOST)

    def is_room_low(self) -> bool:
        """Whether the disk has so little left that it is time to look for garbage of others."""
        return not self._read_only and is_low(self._store.path)

    def giving_back(self, gained: Gained | None = None, *, hurried: bool = False) -> Steps[None]:
        """Free and punch what nothing refers to any more, in slices that requests go between.

        ``hurried``: somebody waits for it.

        Raises:
            StoreError: the disk failed; gc can go on later.
        """
        if self._read_only:
            return
        more = True
        while more:
            yield self._store.db.give_way
            pace = self._hurried if hurried or self.is_waited_for else self._pace
            freed = yield from freeing(self._store, pace.limit)
            pace.note(freed.records, freed.held_s)
            more = freed.more and freed.records > 0
        while (
            yield from punching(
                self._store, _SLICE_RANGES, wait=False, every_pack=False, gained=gained
            )
        ):
            yield self._store.db.give_way

    def making_room(self) -> Steps[int]:
        """Do what gc does, but for rewriting packs: let go of what dead processes held, give back.

        Nothing is done while another process does this.

        Returns:
            How many bytes of disk that gave back.
        """
        gained = Gained()
        with exclusive(self._store.layout, self._store.disk, ROOM_LOCK, wait=False) as mine:
            if mine:
                yield from releasing_dead_owners(self._store)
                yield from self.giving_back(gained, hurried=True)
        return gained.disk_bytes
