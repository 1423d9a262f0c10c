"""What a reader remembers: nothing that was not said, and nearly all that was."""

from __future__ import annotations

from dedupfs.format.keys import REFERENCES_OFFSET
from dedupfs.store.remembered import DECODED_BYTES_MAX, Decoded, Verified
from tests.store.payloads import noise

ROW = bytes(REFERENCES_OFFSET)


def test_what_was_verified_is_remembered_at_its_place_alone() -> None:
    verified = Verified()
    verified.add(b"one", ROW)
    assert verified.covers(b"one", ROW + b"any count")
    assert not verified.covers(b"one", b"\1" + ROW[1:])
    assert not verified.covers(b"two", ROW)
    verified.forget()
    assert not verified.covers(b"one", ROW)


def test_a_file_that_is_read_again_is_hardly_verified_again() -> None:
    """An 8 GiB file has 130,000 chunks; half of those of a small one were once forgotten."""
    verified = Verified()
    for count in (1_000, 11_000, 40_000):
        ids = [noise(number, 16) for number in range(count)]
        for _ in range(2):
            for record_id in ids:
                if not verified.covers(record_id, ROW):
                    verified.add(record_id, ROW)
        assert sum(not verified.covers(record_id, ROW) for record_id in ids) < count / 20


def test_decoded_chunks_are_kept_within_their_limit_the_last_used_ones() -> None:
    decoded = Decoded()
    payload = bytes(DECODED_BYTES_MAX // 4)
    for key in (b"a", b"b", b"c", b"d"):
        decoded.add(key, payload)
    assert decoded.get(b"a") is not None
    decoded.add(b"e", payload)
    assert decoded.get(b"b") is None
    assert decoded.get(b"a") is not None
    decoded.clear()
    assert decoded.get(b"a") is None
