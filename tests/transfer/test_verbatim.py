"""Large files: what becomes a verbatim pack, what is poured, and a crafted collision."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dedupfs.errors import StoreFullError
from dedupfs.model import RecordId, RecordKind, TreeEntry
from dedupfs.namespace.contents import load_recipe
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store
from dedupfs.transfer.ingest import ingest_tree
from dedupfs.transfer.verbatim import remove_stale_files
from tests.transfer.trees import LARGE_BYTES, noise


def packs(store: Store, suffix: str) -> int:
    return len(list((store.path / "packs").rglob(f"*.{suffix}")))


def content(store: Store, root: TreeEntry, path: bytes) -> bytes:
    recipe = load_recipe(store, TreeReader(store).walk_path(root, path).content)
    return store.read(recipe.cut(0, recipe.size))


def imported(store: Store, source: Path, name: str) -> TreeEntry:
    report = ingest_tree(store, source, name)
    assert not report.problems
    assert report.snapshot is not None
    return report.snapshot.root


def test_a_new_large_file_becomes_a_pack_as_it_is(store: Store, source: Path) -> None:
    data = noise(1, 5 * LARGE_BYTES)
    (source / "a").write_bytes(data)
    root = imported(store, source, "one")
    [pack] = (store.path / "packs").rglob("*.file")
    assert pack.read_bytes() == data
    assert content(store, root, b"a") == data
    assert os.listdir(store.path / "run") == [] or all(
        not name.startswith("import-") for name in os.listdir(store.path / "run")
    )


def test_a_large_file_of_little_news_is_poured(store: Store, source: Path) -> None:
    data = noise(1, 10 * LARGE_BYTES)
    (source / "a").write_bytes(data)
    imported(store, source, "one")
    changed = data[:100_000] + noise(2, 3 * LARGE_BYTES) + data[100_000:]
    (source / "a").write_bytes(changed)
    assert content(store, imported(store, source, "two"), b"a") == changed
    assert packs(store, "file") == 1


@pytest.mark.parametrize("kernel_can", [True, False])
def test_files_of_one_import_share_their_chunks(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch, kernel_can: bool
) -> None:
    """Also where nothing can be read or written without the page cache."""
    if not kernel_can:
        preadv, pwritev = os.preadv, os.pwritev

        def refuse(flags: int) -> None:
            if flags == 0x80:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        def read(fd: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
            refuse(flags)
            return preadv(fd, buffers, offset, flags)

        def write(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
            refuse(flags)
            return pwritev(fd, buffers, offset, flags)

        monkeypatch.setattr(os, "preadv", read)
        monkeypatch.setattr(os, "pwritev", write)
    shared, own = noise(1, 10 * LARGE_BYTES), noise(2, 20 * LARGE_BYTES)
    (source / "a").write_bytes(shared)
    (source / "b").write_bytes(b"header" + shared + own)
    root = imported(store, source, "one")
    assert content(store, root, b"a") == shared
    assert content(store, root, b"b") == b"header" + shared + own
    taken = sum(path.stat().st_blocks * 512 for path in (store.path / "packs").rglob("*.*"))
    assert taken < len(shared + own) + len(shared) // 2


def test_a_large_text_is_compressed(store: Store, source: Path) -> None:
    text = b"".join(b"line %d of the log\n" % number for number in range(20_000))
    (source / "log").write_bytes(text)
    assert content(store, imported(store, source, "one"), b"log") == text
    assert packs(store, "file") == 0
    stored = sum(path.stat().st_size for path in (store.path / "packs").rglob("*.pack"))
    assert stored < len(text) / 2


def test_two_chunks_of_one_id_are_both_kept(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All chunks get the same salt-0 id, as if somebody had crafted them."""
    digest = store.digest

    def weak(kind: RecordKind, payload: bytes | memoryview, salt: int = 0) -> RecordId:
        if kind is RecordKind.CHUNK and salt == 0:
            return RecordId(b"collides" * 2)
        return digest(kind, payload, salt)

    monkeypatch.setattr(store, "digest", weak)
    monkeypatch.setattr(store.reader, "_digest", weak)
    monkeypatch.setattr(store._finder, "_digest", weak)
    data = noise(1, 5 * LARGE_BYTES)
    (source / "a").write_bytes(data)
    (source / "b").write_bytes(data + data)
    root = imported(store, source, "one")
    assert content(store, root, b"a") == data
    assert content(store, root, b"b") == data + data
    SnapshotCatalog(store).remove(["one"])
    monkeypatch.undo()
    # What is left are ids that only the weak digest can make: take them away before the check.
    from dedupfs.maintenance.gc import collect

    collect(store)


def test_a_full_disk_leaves_the_store_as_it_was(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "a").write_bytes(noise(1, 5 * LARGE_BYTES))

    def full(_fd: int, _buffers: object, _offset: int, _flags: int = 0) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(StoreFullError):
        ingest_tree(store, source, "one")
    monkeypatch.undo()
    assert not SnapshotCatalog(store).list()
    assert not list((store.path / "run").glob("import-*"))
    assert content(store, imported(store, source, "one"), b"a") == noise(1, 5 * LARGE_BYTES)


def test_what_dead_imports_left_is_removed(store: Store) -> None:
    left = store.path / "run" / "import-0123.new"
    left.write_bytes(b"half a file")
    remove_stale_files(store)
    assert not left.exists()
