"""The ledger: what was noted is found by whoever has the descriptor, whenever it is looked at."""

from __future__ import annotations

import os

import pytest

from dedupfs.errors import TooManyOpenError
from dedupfs.namespace.ledger import DIRECTORY, PRIVILEGED, Ledger, OpenHandle


def successor(ledger: Ledger) -> Ledger:
    return Ledger(os.dup(ledger.fd))


def test_open_handles_are_found_again() -> None:
    ledger = Ledger()
    one = ledger.open(7, 0)
    other = ledger.open(1 << 40, DIRECTORY | PRIVILEGED)
    gone = ledger.open(9, 0)
    ledger.note_mtime(one, 10**18)
    assert ledger.close_handle(gone) == 0
    after = successor(ledger)
    assert sorted(after.open_handles(), key=lambda found: found.inode) == [
        OpenHandle(one, 7, 0, 10**18),
        OpenHandle(other, 1 << 40, DIRECTORY | PRIVILEGED, 0),
    ]
    assert after.close_handle(one) == 10**18
    after.close()
    ledger.close()


def test_a_handle_is_never_given_twice_and_closes_once() -> None:
    ledger = Ledger()
    first = ledger.open(7, 0)
    ledger.close_handle(first)
    after = successor(ledger)
    second = after.open(8, 0)
    assert second != first
    after.note_mtime(second, 5)
    assert after.close_handle(first) == 0
    assert after.close_handle(second) == 5
    assert list(after.open_handles()) == []
    after.close()
    ledger.close()


def test_the_request_in_hand_is_told_until_it_is_answered() -> None:
    ledger = Ledger()
    assert ledger.request is None
    ledger.begin(9, 1, 1234, 3, 500)
    handle = ledger.open(7, 0)
    request = successor(ledger).request
    assert request is not None
    assert (request.opcode, request.inode, request.pid) == (9, 1, 1234)
    assert (request.journal_generation, request.journal_bytes) == (3, 500)
    assert request.handle == handle
    ledger.end()
    assert successor(ledger).request is None
    ledger.begin(12, 1, 1234, 3, 600)
    later = successor(ledger).request
    assert later is not None
    assert later.handle == 0
    ledger.close()


def test_requests_that_were_done_are_told_to_every_successor() -> None:
    ledger = Ledger()
    ledger.init_request = b"init" * 26
    assert ledger.done == set()
    ledger.note_done(1 << 40)
    ledger.note_done(7)
    assert successor(ledger).done == {7, 1 << 40}
    for unique in range(100, 164):
        successor(ledger).note_done(unique)
    assert ledger.done == set(range(100, 164))
    assert ledger.init_request == b"init" * 26
    assert list(ledger.open_handles()) == []
    ledger.close()


def test_snapshots_that_were_entered_are_told_to_every_successor() -> None:
    ledger = Ledger()
    assert list(ledger.entered()) == []
    ledger.note_entered(b"one" * 100)
    after = successor(ledger)
    after.note_entered(b"other")
    last = successor(after)
    assert list(last.entered()) == [b"one" * 100, b"other"]
    handle = last.open(7, 0)
    last.close_handle(handle)
    assert list(ledger.entered()) == [b"one" * 100, b"other"]
    for each in (ledger, after, last):
        each.close()


def test_a_note_of_a_snapshot_that_was_cut_short_is_none() -> None:
    ledger = Ledger()
    ledger.note_entered(b"one")
    was = os.lseek(ledger.fd, 0, os.SEEK_END) - (16 << 20)
    ledger.note_entered(b"\xff" * 100)
    os.pwrite(ledger.fd, bytes(4), was + 7)  # its length is written last
    after = successor(ledger)
    assert list(after.entered()) == [b"one"]
    after.note_entered(b"short")
    assert list(successor(after).entered()) == [b"one", b"short"]
    ledger.close()
    after.close()


def test_what_has_no_room_among_the_snapshots_is_left_out() -> None:
    ledger = Ledger()
    ledger.note_entered(bytes(16 << 20))
    assert list(successor(ledger).entered()) == []
    ledger.note_entered(b"one")
    assert list(successor(ledger).entered()) == [b"one"]
    ledger.close()


def test_a_ledger_of_a_program_that_noted_no_snapshots_is_gone_on_with() -> None:
    ledger = Ledger()
    handle = ledger.open(7, 0)
    os.ftruncate(ledger.fd, os.fstat(ledger.fd).st_size - (16 << 20))
    after = successor(ledger)
    assert [found.handle for found in after.open_handles()] == [handle]
    after.note_entered(b"one")
    assert list(successor(after).entered()) == [b"one"]
    ledger.close()
    after.close()


def test_the_kernels_init_is_kept() -> None:
    ledger = Ledger()
    assert ledger.init_request == b""
    ledger.init_request = b"init" * 26
    assert successor(ledger).init_request == b"init" * 26
    ledger.close()


def test_a_full_ledger_says_so() -> None:
    ledger = Ledger(handles_max=2)
    handles = [ledger.open(7, 0), ledger.open(8, 0)]
    with pytest.raises(TooManyOpenError):
        ledger.open(9, 0)
    ledger.close_handle(handles[0])
    assert ledger.open(9, 0) not in handles
    ledger.close()
    ledger.close()
