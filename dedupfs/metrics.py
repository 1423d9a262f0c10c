"""Counters of mounts and sums of stores as text for Prometheus.

Asks no daemon and opens no store. Every name in ``Counted`` becomes a metric by rule, so that a
new counter is exported by itself: ``X`` of the totals is ``dedupfs_X_total``, ``X`` of the gauges
``dedupfs_X``; microseconds become seconds, which Prometheus wants. prometheus_client is imported
here alone, and this module only where metrics are asked for. What the numbers mean: docs/cli.md,
"metrics".
"""

import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from dedupfs.namespace.live import LATENCY_BOUNDS_US, Counted

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MOUNT = ("store", "view", "mountpoint")
_HELP = {
    "read_bytes": "Bytes given to the kernel; what its page cache has does not come here.",
    "written_bytes": "Bytes taken from the kernel.",
    "waited_reads": "Reads of which a thread waited for the disk; all others were cached.",
    "failed_requests": "Requests answered with an error, most of them ordinary.",
    "found_bytes": "Bytes on their way in that the store had already.",
    "inserted_bytes": "What the records took that were stored instead.",
    "verified_chunks": "Records read for the first time and compared with their ids.",
    "tree_reads": "Parts of directories that were not in memory.",
    "cpu_us": "Processor time of the daemon.",
    "open_files": "Open handles of files.",
    "open_directories": "Open handles of directories.",
    "changed_files": "Files that are open or have not become chunks yet.",
    "journal_bytes": "What a daemon that takes over would replay.",
    "memory_bytes": "Resident memory of the daemon.",
}
_STORE_HELP = {
    "snapshots": "Snapshots of the store.",
    "views": "Views of the store.",
    "packs": "Packs of the store.",
    "live_bytes": "What counts against the store's limit: live records, and views' files.",
    "limit_bytes": "What the store may take, if it is limited.",
    "disk_bytes": "What all files of the store take on disk.",
    "garbage_bytes": "What is known to be dead and not freed yet.",
    "unpunched_bytes": "What is freed and not given back to the disk yet.",
    "hole_bytes": "What was given back inside packs.",
    "filesystem_free_bytes": "Room that is left on the store's file system.",
    "filesystem_size_bytes": "Size of the store's file system.",
}


@dataclass(frozen=True, slots=True)
class MountCounters:
    """One mount and what it said; ``counted`` None: it did not answer."""

    store: str
    view: str
    mountpoint: str
    counted: Counted | None

    @property
    def labels(self) -> tuple[str, ...]:
        """The values of the labels that name it."""
        return tuple(_text(value) for value in (self.store, self.view, self.mountpoint))


def _text(value: str) -> str:
    """Return a value for a label: Prometheus takes UTF-8 alone, and a terminal obeys the rest."""
    text = value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in text
    )


Sums = Mapping[str, Mapping[str, int]]
"""By a store's path: its numbers by name. One that is not there is not known, or not set."""


def file_system_sums(path: str | os.PathLike[str]) -> dict[str, int]:
    """Return the room of a store's file system, for ``render``."""
    found = os.statvfs(path)
    return {
        "filesystem_free_bytes": found.f_bavail * found.f_frsize,
        "filesystem_size_bytes": found.f_blocks * found.f_frsize,
    }


def render(mounts: Iterable[MountCounters], stores: Sums = MappingProxyType({})) -> bytes:
    """Return everything in the text format of Prometheus, version 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fixed(itertools.chain(_mount_families(list(mounts)), _sums(stores))))
    return bytes(generate_latest(registry))


class _Fixed:
    """Families that are known already, as the registry asks for them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families

    def describe(self) -> Iterable[Metric]:
        return ()


def _mount_families(mounts: list[MountCounters]) -> Iterable[Metric]:
    if not mounts:
        return []
    answered = [(mount.labels, mount.counted) for mount in mounts if mount.counted is not None]
    up = GaugeMetricFamily("dedupfs_up", "Whether the mount's daemon answered.", labels=_MOUNT)
    began = GaugeMetricFamily(
        "dedupfs_start_time_seconds", "When the daemon began, and its counters.", labels=_MOUNT
    )
    requests = CounterMetricFamily(
        "dedupfs_requests", "Requests of the kernel.", labels=[*_MOUNT, "operation"]
    )
    errors = CounterMetricFamily(
        "dedupfs_request_errors", "Requests that failed.", labels=[*_MOUNT, "errno"]
    )
    for mount in mounts:
        up.add_metric(mount.labels, mount.counted is not None)
    for labels, counted in answered:
        began.add_metric(labels, counted.since_ns / 1e9)
        for operation, count in counted.requests.items():
            requests.add_metric([*labels, operation], count)
        for name, count in counted.errors.items():
            errors.add_metric([*labels, name], count)
    return [up, began, requests, errors, _latency(answered), *_by_rule(answered)]


Answered = list[tuple[tuple[str, ...], Counted]]


def _latency(answered: Answered) -> Metric:
    """Return how long the requests took that were timed: cumulative, as a histogram is."""
    found = HistogramMetricFamily(
        "dedupfs_request_seconds",
        "Time in the daemon, of one request in 64 of each operation.",
        labels=[*_MOUNT, "operation"],
    )
    bounds = [*(str(bound / 1e6) for bound in LATENCY_BOUNDS_US), "+Inf"]
    for labels, counted in answered:
        for operation, (took_ns, *counts) in counted.timed.items():
            if len(counts) == len(bounds):  # a daemon of another version has others
                buckets = list(zip(bounds, itertools.accumulate(counts), strict=True))
                found.add_metric([*labels, operation], buckets, took_ns / 1e9)
    return found


def _by_rule(answered: Answered) -> Iterable[Metric]:
    totals = dict.fromkeys(name for _, counted in answered for name in counted.totals)
    for name in totals:
        unit, per = (name[:-3] + "_seconds", 1_000_000) if name.endswith("_us") else (name, 1)
        counter = CounterMetricFamily(f"dedupfs_{unit}", _HELP.get(name, name), labels=_MOUNT)
        for labels, counted in answered:
            if name in counted.totals:
                counter.add_metric(labels, counted.totals[name] / per)
        yield counter
    gauges = dict.fromkeys(name for _, counted in answered for name in counted.gauges)
    for name in gauges:
        gauge = GaugeMetricFamily(f"dedupfs_{name}", _HELP.get(name, name), labels=_MOUNT)
        for labels, counted in answered:
            if name in counted.gauges:
                gauge.add_metric(labels, counted.gauges[name])
        yield gauge


def _sums(stores: Sums) -> Iterable[Metric]:
    for name, about in _STORE_HELP.items():
        gauge = GaugeMetricFamily(f"dedupfs_store_{name}", about, labels=["store"])
        for path, values in stores.items():
            if name in values:
                gauge.add_metric([_text(path)], values[name])
        if gauge.samples:
            yield gauge
