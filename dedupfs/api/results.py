"""What the public interface answers besides files, snapshots and views. Values only."""

from dataclasses import dataclass
from typing import Literal

from dedupfs.api.reading import Stat

Kind = Literal["added", "removed", "modified", "metadata", "type"]


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Bytes in all, in use, and free to use, as of ``shutil.disk_usage``."""

    total: int
    used: int
    free: int


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
class Collected:
    """What a gc freed, or would free. Sizes in bytes; names as in ``dedupfs gc --json``.

    ``freed_bytes``: records, as they are stored; ``disk_bytes_freed``: what the disk got back for
    them, for what was freed before, and (``compacted_bytes`` of it) for packs that were rewritten.
    ``free_bytes``: what the disk has now.
    """

    records: int
    freed_bytes: int
    disk_bytes_freed: int
    compacted_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What one snapshot or view takes, or several together. Names as in ``dedupfs du --json``.

    ``logical_bytes``: its files, as they read; ``shared_bytes``: what of that others hold, too;
    ``exclusive_bytes``: records that only it holds, as they are stored; ``frees_bytes``: what the
    disk gets back when it is removed. ``kind``: snapshot, view or together. ``problems``: what is
    damaged and could not be followed, so that more may be held or freed.
    """

    kind: str
    name: str
    logical_bytes: int
    shared_bytes: int
    exclusive_bytes: int
    frees_bytes: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stats:
    """What a store holds and what that takes. Sizes in bytes; names as in ``dedupfs stats --json``.

    ``logical_bytes``: all files of all snapshots, as they read; ``unique_bytes``: distinct chunks,
    before compression; ``stored_bytes``: these as they lie in packs; ``disk_bytes``: blocks that
    the store takes on its disk; ``copies_bytes``: what plain copies of everything would take.
    ``problems``: what is damaged and not counted.
    """

    snapshots: int
    views: int
    entries: int
    logical_bytes: int
    view_logical_bytes: int
    unique_bytes: int
    chunks: int
    stored_bytes: int
    metadata_bytes: int
    garbage_disk_bytes: int
    disk_bytes: int
    copies_bytes: int
    dedup_ratio: float
    ratio: float
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ViewInfo:
    """A view of a store. ``pid`` and ``mountpoint`` tell who has it open: None, "" for nobody."""

    name: str
    snapshot: str
    pid: int | None
    mountpoint: str
