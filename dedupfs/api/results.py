"""What the public interface answers besides files, snapshots and views. Values only."""

from dataclasses import dataclass
from typing import Literal

from dedupfs.api.reading import Stat

Kind = Literal["added", "removed", "modified", "metadata", "type"]


@dataclass(frozen=True, slots=True)
class Change:
    """One object that differs between two snapshots; a side where it is not is None."""

    kind: Kind
    path: str
    before: Stat | None
    after: Stat | None


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune did, or would do: names, and the reason for each that stays.

    ``freed_bytes``: stored bytes that gc freed after it; of a dry run, what only those that go
    hold; None without gc.
    """

    kept: dict[str, tuple[str, ...]]
    removed: list[str]
    freed_bytes: int | None


@dataclass(frozen=True, slots=True)
class ViewInfo:
    """A view of a store. ``pid`` and ``mountpoint`` tell who has it open: None, "" for nobody."""

    name: str
    snapshot: str
    pid: int | None
    mountpoint: str
