"""Blocks read ahead: every byte, in order, whatever the block size; holes; a thread that stops."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dedupfs.model import RecordId, RecordKind
from dedupfs.store import Store
from dedupfs.store.cutter import Cutter
from dedupfs.transfer import reader
from dedupfs.transfer.reader import Block, ReadAhead, data_segments, read_blocks
from tests.transfer.trees import noise


def blocks_of(store: Store, fd: int) -> list[tuple[int, bytes]]:
    """Read ahead and copy what each block holds, since its bytes are used again."""

    def digest(payload: memoryview) -> RecordId:
        return store.digest(RecordKind.CHUNK, payload)

    found = []
    blocks = read_blocks(fd, os.fstat(fd), Cutter(store.chunker, digest, None))
    with ReadAhead(blocks) as source:
        for block in source:
            data = b"".join(bytes(cut.payload or bytes(cut.length)) for cut in block.cuts)
            assert len(data) == block.length
            found.append((block.file_offset, data))
    return found


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.lists(st.tuples(st.booleans(), st.integers(1, 200_000)), max_size=5),
    block_bytes=st.sampled_from([4096, 10_000, 65_536, 1 << 20]),
)
def test_blocks_make_the_file(
    store: Store, source: Path, runs: list[tuple[bool, int]], block_bytes: int
) -> None:
    with (source / "f").open("wb") as file:
        for seed, (is_data, length) in enumerate(runs):
            if is_data:
                file.write(noise(seed, length))
            else:
                file.seek(length, os.SEEK_CUR)
        file.truncate()
    with pytest.MonkeyPatch.context() as patch, (source / "f").open("rb") as file:
        patch.setattr(reader, "BLOCK_BYTES", block_bytes)
        found = blocks_of(store, file.fileno())
        offset = 0
        for file_offset, data in found:
            assert file_offset == offset
            offset += len(data)
        file.seek(0)  # SEEK_DATA moved it
        assert b"".join(data for _, data in found) == file.read()


def test_holes_are_found(source: Path) -> None:
    with (source / "f").open("wb+") as file:
        file.seek(1 << 20)
        file.write(b"data")
        file.truncate(3 << 20)
        file.flush()
        status = os.fstat(file.fileno())
        segments = list(data_segments(file.fileno(), status.st_size, status.st_blocks * 512))
        if segments == [(0, 3 << 20)]:
            pytest.skip("this file system does not tell where holes are")
        assert segments[0][0] <= 1 << 20
        assert sum(stop - start for start, stop in segments) < 1 << 20


def test_a_reader_that_is_not_listened_to_ends() -> None:
    def endless() -> Iterator[Block]:
        while True:
            yield Block(0, [], 0)

    with ReadAhead(endless()):
        pass
    assert all(thread.name != "read ahead" for thread in threading.enumerate())


def test_the_failure_of_a_read_is_raised_where_blocks_are_taken() -> None:
    def failing() -> Iterator[Block]:
        yield Block(0, [], 0)
        raise OSError(5, "Input/output error")

    with ReadAhead(failing()) as source, pytest.raises(OSError, match="Input/output"):
        list(source)
