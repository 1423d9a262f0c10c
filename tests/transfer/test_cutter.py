"""Following what was stored before must find the very cuts that the chunker finds.

Method: the same bytes are cut with and without foresight, on stores that hold some of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dedupfs.chunking import Chunker
from dedupfs.model import HOLE, RecordId, RecordKind
from dedupfs.store import Store, cutter
from dedupfs.store.cutter import Cutter, Foresight, is_zero
from dedupfs.transfer.ingest import ingest_tree
from tests.transfer.trees import noise

OLD = noise(1, 700_000)
NEW = {
    "the same": OLD,
    "a prefix": OLD[:300_001],
    "shifted": b"x" * 777 + OLD,
    "changed in the middle": OLD[:300_000] + b"change" + OLD[300_000:],
    "the end first": OLD[350_000:] + OLD[:350_000],
    "other": noise(2, 700_000),
    "zeros inside": OLD[:200_000] + bytes(100_000) + OLD[200_000:],
    "zeros": bytes(400_000),
    "tiny": b"x",
    "empty": b"",
}


def cuts(store: Store, foresight: Foresight | None, data: bytes) -> list[tuple[int, RecordId]]:
    """Cut as the reader does: in buffers, undecided bytes in front of the next one."""

    def digest(payload: memoryview) -> RecordId:
        return store.digest(RecordKind.CHUNK, payload)

    cutting = Cutter(store.chunker, digest, foresight)
    found: list[tuple[int, RecordId]] = []
    start = 0
    stop = 150_000
    while True:
        final = stop >= len(data)
        some, used = cutting.cut(memoryview(data)[start:stop], final=final)
        found += [(cut.length, cut.digest) for cut in some]
        start += used
        if final:
            return found
        stop += 150_000


@pytest.mark.parametrize("name", NEW)
def test_foresight_changes_no_cut(
    store: Store, source: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutter, "WINDOW_BYTES", 1)  # then it is twice the longest chunk
    (source / "old").write_bytes(OLD)
    ingest_tree(store, source, "old")
    expected = cuts(store, None, NEW[name])
    assert sum(length for length, _ in expected) == len(NEW[name])
    assert cuts(store, Foresight(store), NEW[name]) == expected


def test_what_is_known_is_hardly_cut(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "old").write_bytes(OLD)
    ingest_tree(store, source, "old")
    given: list[int] = []
    cut = Chunker.cut

    def counted(self: Chunker, data: bytes, *, final: bool) -> list[int]:
        given.append(len(data))
        return cut(self, data, final=final)

    monkeypatch.setattr(Chunker, "cut", counted)
    monkeypatch.setattr(cutter, "WINDOW_BYTES", 1)
    cuts(store, Foresight(store), OLD)
    assert sum(given) < len(OLD) / 4


def test_zeros_are_holes() -> None:
    assert is_zero(memoryview(bytes(200_000)))
    for place in (0, 1, 65_535, 65_536, 131_072, 199_998, 199_999):
        data = bytearray(200_000)
        data[place] = 1
        assert not is_zero(memoryview(data)), place


def test_only_zeros_are_cut_as_holes(store: Store) -> None:
    found = cuts(store, None, bytes(100_000) + noise(3, 50_000))
    assert found[0][1] == HOLE
    assert any(chunk_id != HOLE for _, chunk_id in found)
