"""Reading ahead in packs: what comes in order is asked of the disk before it is wanted.

The kernel reads ahead in the mount, but its requests come one or two at a time and in chunks that
lie anywhere; only here is it known that they lie side by side in one pack, as those of a large file
do, and those of the small files of a directory. Thread-safe; knows packs as numbers, no records.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from dedupfs.store.disk import Disk, File

_NEAR_BYTES = 1 << 20
"""A read this close to the last one goes on with it: the kernel's requests may pass each other."""
_WINDOW_BYTES_MIN = 1 << 20
_WINDOW_BYTES_MAX = 8 << 20
_STREAMS_MAX = 64


@dataclass(slots=True)
class _Stream:
    """Reads of one pack in order; ``window_bytes`` are asked for ahead, none while all is cached.

    Of the pack everything before ``ahead`` was asked for.
    """

    stop: int
    ahead: int
    window_bytes: int = 0


class ReadAhead:
    """Watches where packs are read."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = threading.Lock()
        self._streams: OrderedDict[int, _Stream] = OrderedDict()

    def passes(self, pack: int, file: File, start: int, stop: int) -> None:
        """A read found all in the page cache."""
        stream = self._streams.get(pack)
        if stream is not None and stream.window_bytes:
            self._note(pack, file, start, stop, grow=False)

    def waits(self, pack: int, file: File, start: int, stop: int) -> None:
        """A read is about to wait for the disk, perhaps."""
        self._note(pack, file, start, stop, grow=True)

    def _note(self, pack: int, file: File, start: int, stop: int, *, grow: bool) -> None:
        with self._lock:
            stream = self._streams.get(pack)
            if stream is None or abs(start - stream.stop) > _NEAR_BYTES:
                self._begin(pack, stop)
                return
            stream.stop = max(stop, stream.stop)
            if grow:
                twice = max(2 * stream.window_bytes, _WINDOW_BYTES_MIN)
                stream.window_bytes = min(twice, _WINDOW_BYTES_MAX)
            if stream.stop + stream.window_bytes // 2 <= stream.ahead:
                return
            first = max(stream.ahead, stream.stop)
            stream.ahead = stream.stop + stream.window_bytes
            last = stream.ahead
        self._disk.will_need(file, first, last)

    def _begin(self, pack: int, stop: int) -> None:
        self._streams[pack] = _Stream(stop, stop)
        self._streams.move_to_end(pack)
        if len(self._streams) > _STREAMS_MAX:
            self._streams.popitem(last=False)
