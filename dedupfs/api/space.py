"""What a store takes and what gc frees, as values. Names are those of the commands' --json."""

from dedupfs.api.results import Collected, Stats, Taken
from dedupfs.maintenance.forecast import Forecast
from dedupfs.maintenance.gc import collect, forecast
from dedupfs.maintenance.release import Exclusive
from dedupfs.maintenance.usage import store_usage
from dedupfs.store import Store


def collected(store: Store, *, dry_run: bool) -> Collected:
    """Free what can be freed, or tell what that would be."""
    if dry_run:
        found = forecast(store)
        return Collected(
            found.records,
            found.stored_bytes,
            found.disk_bytes + found.compacted_bytes,
            found.compacted_bytes,
            found.free_bytes,
        )
    done = collect(store)
    return Collected(
        done.records,
        done.stored_bytes,
        done.disk_bytes_freed,
        done.compacted_bytes,
        done.free_bytes,
    )


def stats(store: Store) -> Stats:
    """Return the sums of a store."""
    usage = store_usage(store)
    return Stats(
        snapshots=usage.snapshots,
        views=usage.views,
        entries=usage.entries,
        logical_bytes=usage.logical_bytes,
        view_logical_bytes=usage.view_logical_bytes,
        unique_bytes=usage.chunk_logical_bytes,
        chunks=usage.chunks,
        stored_bytes=usage.chunk_stored_bytes,
        metadata_bytes=usage.metadata_stored_bytes,
        garbage_disk_bytes=usage.garbage_disk_bytes,
        disk_bytes=usage.disk_bytes,
        copies_bytes=usage.copies_bytes,
        dedup_ratio=round(usage.dedup_ratio, 4),
        ratio=round(usage.ratio, 4),
        problems=usage.problems,
    )


def taken(store: Store, names: tuple[str, ...], views: tuple[str, ...]) -> list[Taken]:
    """Return what snapshots and views take: all of them, or those named and all these together."""
    with store.reading() as txn:
        played = Forecast(store, txn)
        chosen = bool(names or views)
        snapshots = tuple(dict.fromkeys(names)) if chosen else tuple(played.snapshots())
        wanted_views = tuple(dict.fromkeys(views)) if chosen else tuple(played.views())
        found = []
        for name in snapshots:
            logical_bytes = played.logical_bytes(played.snapshot(name)[0])
            found.append(_taken("snapshot", name, logical_bytes, played.exclusive([name])))
        for name in wanted_views:
            logical_bytes = played.view_logical_bytes(played.view(name))
            found.append(_taken("view", name, logical_bytes, played.exclusive([], [name])))
        if chosen:
            logical_bytes = sum(one.logical_bytes for one in found)
            together = played.exclusive(snapshots, wanted_views)
            found.append(_taken("together", "", logical_bytes, together))
        return found


def _taken(kind: str, name: str, logical_bytes: int, only: Exclusive) -> Taken:
    sizes = logical_bytes, only.shared_bytes, only.stored_bytes, only.disk_bytes
    return Taken(kind, name, *sizes, only.problems)
