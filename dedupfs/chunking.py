"""Bytes -> cut points: content-defined chunking (FastCDC). Pure; pyfastcdc is imported only here.

A cut depends on nothing but the bytes since the previous cut, so the same run of bytes is cut the
same way wherever it stands, once a boundary has been found (Xia et al., USENIX ATC 2016 and
"The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage Systems", 2020).
"""

from dataclasses import dataclass

from pyfastcdc import FastCDC

from dedupfs.errors import UsageError

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ChunkingParams:
    """Sizes in bytes: no chunk but the last of a file is shorter than ``minimum``."""

    minimum: int = 16 * 1024
    average: int = 64 * 1024
    maximum: int = 256 * 1024

    def __post_init__(self) -> None:
        """Refuse sizes that FastCDC cannot work with."""
        if not 64 <= self.minimum < self.average < self.maximum <= 1 << 24:
            raise UsageError(
                f"chunk sizes must rise from minimum to maximum within 64 B and 16 MiB, "
                f"not {self.minimum}, {self.average}, {self.maximum}"
            )
        if self.average & (self.average - 1):
            raise UsageError(f"the average chunk size must be a power of two, not {self.average}")


class Chunker:
    """Cuts buffers; holds no state between calls but the tables of its parameters."""

    def __init__(self, params: ChunkingParams) -> None:
        self.params = params
        self._cdc = FastCDC(params.average, min_size=params.minimum, max_size=params.maximum)

    def cut(self, data: Buffer, *, final: bool) -> list[int]:
        """Return the chunk lengths that ``data``, which starts at a boundary, is cut into.

        With ``final`` the lengths add up to ``len(data)``. Without it the last, undecided chunk
        is left out: the caller feeds its bytes again, followed by what comes next. A chunk whose
        cut was found by content at the very end of the buffer is also left undecided.
        """
        if not data:
            return []
        if final and len(data) <= self.params.minimum:
            return [len(data)]
        lengths = [chunk.length for chunk in self._cdc.cut_buf(data)]
        if not final and lengths[-1] < self.params.maximum:
            lengths.pop()
        return lengths
