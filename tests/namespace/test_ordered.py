"""A file that is written in order and found in the store reads as written, wherever it ends.

Method: a store with tiny chunks; the same bytes are written again in a second file, to lengths
around those at which chunks are cut (16 KiB here) and adopted (128 KiB).
"""

import random

import pytest

from dedupfs.namespace.ordered import ADOPT_CHUNKS, CUT_CHUNKS
from dedupfs.namespace.view import Caller, View
from dedupfs.store.store import Store
from tests.namespace.conftest import CHUNK_BYTES

CALLER = Caller(0, 0)
PIECE_BYTES = 3000


def write(view: View, name: bytes, data: bytes) -> int:
    handle, attr = view.create(1, name, 0o644, CALLER)
    for start in range(0, len(data), PIECE_BYTES):
        view.write(handle, start, data[start : start + PIECE_BYTES])
    view.release(handle)
    return attr.inode


def read(view: View, inode: int) -> bytes:
    handle = view.open(inode, 0)
    try:
        return view.plan_read(handle, 0, 1 << 20).run()
    finally:
        view.release(handle)


@pytest.mark.parametrize("behind", range(0, CUT_CHUNKS + 8, 4))
def test_a_copy_that_ends_just_behind_an_adoption_reads_as_written(
    store: Store, behind: int
) -> None:
    length = (ADOPT_CHUNKS + behind) * CHUNK_BYTES
    data = random.Random(7).randbytes(length)
    view = View.bring_back(store)
    write(view, b"first", data)
    view.fold()
    for more in (b"", b"x" * 700):
        inode = write(view, b"second" + more[:1], data + more)
        assert read(view, inode) == data + more
        view.fold()
        assert read(view, inode) == data + more
    view.close()


def test_a_copy_whose_pieces_pass_each_other_is_found_while_it_is_written(store: Store) -> None:
    data = random.Random(8).randbytes(2 * ADOPT_CHUNKS * CHUNK_BYTES)
    view = View.bring_back(store)
    write(view, b"first", data)
    view.fold()
    page = 4096
    pieces = [(start, data[start : start + page]) for start in range(0, len(data), page)]
    for index in range(0, len(pieces) - 8, 8):
        pieces[index], pieces[index + 7] = pieces[index + 7], pieces[index]
    handle, attr = view.create(1, b"second", 0o644, CALLER)
    for start, piece in pieces:
        view.write(handle, start, piece)
    (staging,) = (store.path / "views").glob("*/staging.*")
    assert staging.stat().st_blocks * 512 < len(data) * 3 // 4
    view.release(handle)
    assert read(view, attr.inode) == data
    view.fold()
    assert read(view, attr.inode) == data
    view.close()
