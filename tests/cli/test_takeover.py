"""Commands in the moment when a view's daemon is not there yet: they wait for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dedupfs.namespace import live
from dedupfs.namespace.view import View
from dedupfs.namespace.views import lock_view
from dedupfs.store import Store
from dedupfs.store.realdisk import RealDisk
from tests.cli.conftest import Run


@pytest.mark.parametrize("is_let_go", [True, False])
def test_a_commit_looks_again_who_has_the_view(
    run: Run, store_path: Path, monkeypatch: pytest.MonkeyPatch, is_let_go: bool
) -> None:
    with Store.open(store_path) as store:
        View.bring_back(store, "job").close()
    lock = lock_view(RealDisk(), store_path, "job", "/mnt/job")
    looks: list[str] = []
    look = live.daemon_of_view

    def look_again(path: Path, view: str) -> live.Daemon | None:
        looks.append(view)
        if len(looks) == 2 and is_let_go:
            lock.release()
        return look(path, view)

    monkeypatch.setattr(live, "daemon_of_view", look_again)
    ran = run("commit", store_path, "made", "--view", "job", code=0 if is_let_go else 6)
    assert len(looks) >= 2
    if not is_let_go:
        assert "/mnt/job" in ran.err
        lock.release()
    assert len(run("ls", "--json", store_path).json) == is_let_go
