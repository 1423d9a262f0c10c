"""The list of volumes is on disk when ``put`` returns, and belongs to one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from dedupfs.errors import CorruptError, StoreBusyError, StoreError
from dedupfs.volumes.ledger import FILE_NAME, Ledger, Volume
from dedupfs.volumes.options import Options


def test_what_was_put_is_there_again_and_a_half_written_list_is_none(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path)
    volume = Volume("a", Options("/store", view="a", is_own=True), 5, 7, ("one", "two"))
    ledger.put(volume)
    ledger.put(Volume("b", Options("/store", read_only=True), 6))
    ledger.remove("b")
    with pytest.raises(StoreBusyError):
        Ledger.open(tmp_path)
    ledger.close()
    (tmp_path / FILE_NAME).with_suffix(".new").write_bytes(b"{")  # a crash before the rename
    again = Ledger.open(tmp_path)
    assert again.all() == [volume]
    again.close()


@pytest.mark.parametrize(
    ("data", "failure"),
    [(b"", CorruptError), (b"{", CorruptError), (b'{"version":9,"volumes":[]}', StoreError)],
)
def test_a_list_that_cannot_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, data: bytes, failure: type[StoreError]
) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    with pytest.raises(failure):
        Ledger.open(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == data


def test_a_change_that_the_disk_refuses_is_none(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path)
    volume = Volume("a", Options("/store"), 5)
    ledger.put(volume)
    (tmp_path / FILE_NAME).with_suffix(".new").mkdir()  # cannot be opened for writing
    with pytest.raises(StoreError, match="cannot keep"):
        ledger.remove("a")
    assert ledger.all() == [volume]
    ledger.close()
