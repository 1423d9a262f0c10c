"""The plugin's socket: nothing is taken from anybody for it, and it is nobody else's to open."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from dedupfs.errors import StoreBusyError, StoreError
from dedupfs.volumes.server import listen


def test_a_dead_plugins_socket_is_taken_and_a_live_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(StoreBusyError, match="already"):
            listen(path)
    with listen(path):
        assert path.is_socket()


def test_a_file_in_the_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(StoreError, match="cannot listen"):
        listen(path)
    assert path.read_text() == "precious"
