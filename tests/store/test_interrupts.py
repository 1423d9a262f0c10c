"""Ctrl-C between a commit and the note of it: what is given up then must not be what is committed.

Method: a transaction with SIGINT at each line of what runs it, one after the other; then what is
pending is given up, as everybody does whom an exception has ended. A record that the index knows
must be there.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.model import Extent
from dedupfs.store import Store
from tests.interrupting import interrupted
from tests.store.payloads import CHUNK, VIEW, noise

pytestmark = pytest.mark.unmeasured  # it traces by itself

FILES = ("store/committer.py", "store/db.py", "store/openpack.py", "store/pending.py")


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Have Python's own handler, which a program that a shell starts with "&" has not."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def test_what_is_committed_stays_wherever_the_transaction_is_interrupted(
    store: Store, tmp_path: Path
) -> None:
    number, committed = 0, 0
    while True:
        number += 1
        payload, large = noise(2 * number), noise(2 * number + 1)
        file = store.layout.run / f"large-{number}"
        file.write_bytes(large)
        chunk = store.put(CHUNK, payload)
        verbatim = store.probe_chunk(large)[0]
        store.put_verbatim(file, [(0, Extent(verbatim, len(large)))])
        file.unlink()

        def commit(ids: tuple[bytes, ...] = (chunk, verbatim)) -> None:
            with store.transaction() as txn:
                for record_id in ids:
                    txn.pin(VIEW, record_id)  # type: ignore[arg-type]

        found = interrupted(number, commit, FILES)
        store.drop_pending()
        assert store.has(chunk) == store.has(verbatim)
        if store.has(chunk):
            assert store.get(chunk, CHUNK) == payload
            assert store.get(verbatim, CHUNK) == large
            committed += 1
        if found is None:
            break
    assert number > 30
    assert 1 < committed < number
    with store.transaction() as txn:
        txn.release_pins(VIEW)
