"""What a view's next daemon gets from one that died: descriptors that the supervisor kept open.

The locks among them were never let go, so nobody else came in between and nothing that was held
back was freed. Knows no FUSE and no supervisor.
"""

from dataclasses import dataclass, field
from functools import cached_property

from dedupfs.namespace.ledger import Ledger

VERSION = 2
"""Of all this and the ledger's layout: who reads another one does not take over."""
LEDGER = "ledger"
OWNER = "owner"
VIEW_LOCK = "view lock"
NUMBERS = "numbers"


@dataclass(frozen=True)
class Handover:
    """A mount's state beyond its store. ``view`` is empty for a read-only mount.

    Attributes:
        root: what a read-only mount shows: an encoded ViewRoot; else empty.
        owner: the process that pinned records; ``fds[OWNER]`` holds its lock.
        fds: by the names above; NUMBERS, the journal of a read-only mount, or VIEW_LOCK.
    """

    view: str
    root: bytes
    owner: bytes
    fds: dict[str, int] = field(default_factory=dict)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger of the daemon that died."""
        return Ledger(self.fds[LEDGER])
