"""Bytes that arrive nearly in order come out in order, whatever was ahead or sent once more.

Method: a file is sent in pieces that pass each other; a piece's last page may be sent again, with
other bytes in it, together with what follows. What comes out is compared with what was sent last.
"""

from hypothesis import given
from hypothesis import strategies as st

from dedupfs.namespace import arrivals
from dedupfs.namespace.arrivals import Arrivals

PAGE = 4


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3), st.booleans()), max_size=30))
def test_what_comes_out_is_what_was_written_last(plan: list[tuple[int, int, bool]]) -> None:
    sent: list[tuple[int, int, bytes]] = []
    image = bytearray()
    for number, (pages, late, again) in enumerate(plan):
        start = len(image) - (PAGE if again and image else 0)
        data = bytes([number % 251 + 1]) * (len(image) - start + pages * PAGE)
        sent.append((number + late, start, data))
        image[start:] = data
        if again:  # a page is never sent while an older version of it is on its way
            sent[-1] = (len(plan) * 2 + number, start, data)
    known = Arrivals()
    assert all(known.add(start, data) for _when, start, data in sorted(sent, key=lambda p: p[:2]))
    assert b"".join(known.parts) == image
    assert known.length == len(image)


def test_a_gap_that_does_not_close_is_given_up() -> None:
    known = Arrivals()
    piece = bytes(arrivals.EARLY_BYTES_MAX // 4)
    places = range(1, 6)
    assert [known.add(n * len(piece), piece) for n in places] == [True, True, True, True, False]


def test_pieces_that_come_from_anywhere_are_given_up_soon() -> None:
    """Each one that is kept costs every write a look: a file that is written at random has many."""
    known = Arrivals()
    places = range(2, 2 * arrivals.EARLY_PIECES_MAX + 4, 2)
    taken = [known.add(place * PAGE, bytes(PAGE)) for place in places]
    assert taken == [True] * arrivals.EARLY_PIECES_MAX + [False]


def test_bytes_that_were_taken_cannot_change() -> None:
    known = Arrivals()
    assert known.add(0, b"abcdefgh")
    known.take(4, b"efgh")
    assert known.add(6, b"GHI")
    assert not known.add(3, b"defghij")
    assert not known.add(5, b"F")
    assert b"".join(known.parts) == b"efGHI"


def test_the_middle_of_what_came_early_cannot_change() -> None:
    known = Arrivals()
    assert known.add(10, b"0123456789")
    assert known.add(18, b"xxxx")
    assert not known.add(12, b"yy")
    assert known.add(0, b"abcdefghij")
    assert b"".join(known.parts) == b"abcdefghij01234567xxxx"
