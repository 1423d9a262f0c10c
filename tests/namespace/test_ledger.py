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
