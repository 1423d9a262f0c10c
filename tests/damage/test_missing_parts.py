"""A store without run/, as a backup may bring it back that leaves out locks, or its settings."""

from __future__ import annotations

import shutil
from pathlib import Path

from dedupfs.maintenance.check import check
from dedupfs.namespace.view import View
from dedupfs.store import Store
from tests.damage.harness import require_told, run, write_file
from tests.maintenance.samples import SMALL, import_directory, make_directory, noise


def test_every_kind_of_command_goes_on_in_a_store_without_its_run_directory(
    tmp_path: Path,
) -> None:
    path, source = tmp_path / "store", make_directory(tmp_path / "source")
    target, adopted = tmp_path / "target", tmp_path / "adopted"
    adopted.mkdir()
    (adopted / "large").write_bytes(noise("large", 9 << 20))
    with Store.create(path, **SMALL) as store:
        import_directory(store, source, "one")
        view = View.bring_back(store, "view")
        write_file(view, b"own", b"own")
        view.close()
    (source / "new").write_bytes(b"new")
    commands: list[tuple[str, ...]] = [
        ("import", str(path), str(source), "two"),
        ("import", "--adopt", str(path), str(adopted), "adopted"),
        ("view", "diff", str(path), "view"),
        ("checkout", str(path), "two", str(target), "--link", "hardlink"),
        ("checkout", "rm", str(target)),
        ("rm", str(path), "one"),
        ("gc", str(path)),
        ("check", str(path)),
    ]
    for command in commands:
        shutil.rmtree(path / "run")
        assert require_told(run(*command)).code == 0, command
    shutil.rmtree(path / "run")
    with Store.open(path) as store:
        assert check(store).ok


def test_a_store_without_its_configuration_is_not_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store.create(path, **SMALL).close()
    (path / "dedupfs.json").unlink()
    ended = require_told(run("ls", path))
    assert ended.code == 2
    assert "dedupfs check --repair" in ended.err
    assert require_told(run("check", "--repair", path)).code == 0
    assert require_told(run("ls", path)).code == 0
