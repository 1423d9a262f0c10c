"""Two processes on one store: each has its own packs, LMDB serialises their transactions.

Method: the other process is a real one, driven line by line over pipes; nobody sleeps.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dedupfs.model import RecordId
from dedupfs.store import Store, inventory
from dedupfs.store.holes import punch
from dedupfs.store.space import free_dead, release_dead_owners
from tests.store.payloads import CHUNK, VIEW, noise, pin, put_pinned, unpin
from tests.store.recount import recount

OTHER = """
import sys
from pathlib import Path
from dedupfs.store import Store
from tests.store.payloads import CHUNK, VIEW, noise
with Store.open(Path(sys.argv[1])) as store:
    for line in sys.stdin:
        what, number = line.split()
        if what == "put":
            chunk_id = store.put(CHUNK, noise(number))
            print(chunk_id.hex(), flush=True)
            continue
        with store.transaction() as txn:
            if what == "pin":
                txn.pin(VIEW, chunk_id)
            elif what == "own":
                txn.pin(store.owner, chunk_id)
            elif what == "unpin":
                txn.unpin(VIEW, chunk_id)
        print("done", flush=True)
"""


class Other:
    """The other process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def say(self, what: str, number: object = 0) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what} {number}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def put(self, number: object) -> RecordId:
        return RecordId(bytes.fromhex(self.say("put", number)))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def other_process(path: Path) -> Iterator[Other]:
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        try:
            yield Other(process)
        finally:
            process.kill()


def test_each_process_appends_to_its_own_pack(store: Store) -> None:
    with other_process(store.path) as other:
        mine = store.put(CHUNK, noise("mine"))
        theirs = other.put("theirs")
        pin(store, [mine])
        assert other.say("pin") == "done"
        assert store.get(theirs, CHUNK) == noise("theirs")
        assert store.locate(mine).pack != store.locate(theirs).pack


def test_what_another_process_committed_is_found(store: Store) -> None:
    with other_process(store.path) as other:
        theirs = other.put(1)
        assert not store.has(theirs)
        other.say("pin")
        assert store.put(CHUNK, noise(1)) == theirs
        pin(store, [theirs])
        assert other.say("unpin") == "done"
        assert free_dead(store, 10).records == 0
        assert store.get(theirs, CHUNK) == noise(1)


def test_the_same_chunk_put_by_both_is_stored_once(store: Store) -> None:
    with other_process(store.path) as other:
        mine = store.put(CHUNK, noise(1))
        assert other.put(1) == mine
        other.say("pin")
        place = store.locate(mine)
        pin(store, [mine])
        assert store.locate(mine).pack != place.pack
        with store.reading() as txn:
            assert [one.pack for one in inventory.free_ranges(txn)] == [place.pack]


def test_a_killed_process_leaves_its_pack_and_loses_its_pins(path: Path) -> None:
    with Store.create(path, compression="none") as store:
        with other_process(path) as other:
            theirs = other.put(1)
            other.say("own")
            lost = other.put(2)
            assert release_dead_owners(store) == 0
            pack = store.locate(theirs).pack
            other.kill()
        assert release_dead_owners(store) == 1
        with store.reading() as txn:
            assert list(inventory.dead_records(txn)) == [theirs]
        (again,) = put_pinned(store, [noise(3)])
        assert store.locate(again).pack == pack  # taken over
        assert not store.has(lost)
        recount(store)


def test_a_pack_of_a_live_process_is_not_removed(store: Store) -> None:
    with other_process(store.path) as other:
        theirs = other.put(1)
        other.say("pin")
        other.say("unpin")
        assert free_dead(store, 10).records == 1
        punch(store, 10)
        punch(store, 10)
        assert other.put(2) != theirs
        other.say("pin")
        assert store.get(store.digest(CHUNK, noise(2)), CHUNK) == noise(2)
        unpin(store, [store.digest(CHUNK, noise(2))])
    with store.transaction() as txn:
        txn.release_pins(VIEW)
