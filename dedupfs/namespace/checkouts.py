"""The checkouts of a store: directories outside that need packs whole and trees kept.

A checkout is a *manifest*, a file ``checkouts/NUMBER`` that survives the loss of the index, and
pins of the owner ``c`` + NUMBER: on the trees that it shows or is being made to show, and on the
chunk table of every pack that its links point at (``store/whole.py``: such a pack stays whole).
Pins are always more than the manifest names, never fewer: they are made before the manifest is
written, which is durable before the first link exists; and they are dropped after a newer manifest
is durable that does not need them, after the last link that did. What a crash leaves is pins that
no manifest names; ``settle`` and ``drop_abandoned`` (gc) drop those.

Who makes or changes a checkout holds flock(2) on ``checkouts/NUMBER.lock``. Knows no file outside
of the store. Source: docs/format.md, "Checkouts".
"""

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dedupfs.errors import CorruptError, NotFoundError, StoreBusyError, StoreError
from dedupfs.format.keys import split_pin_key
from dedupfs.format.manifest import Manifest, decode_manifest, encode_manifest
from dedupfs.format.tree import entry_references
from dedupfs.model import RecordId, TreeEntry
from dedupfs.store.disk import File
from dedupfs.store.owner import close_lock, open_lock, same_file
from dedupfs.store.store import ReadTxn, Store, Table
from dedupfs.store.whole import hold

CHECKOUTS_DIRECTORY = "checkouts"
CHECKOUT_COUNTER = "checkout"
CHECKOUT_PREFIX = b"c"
_OWNER = struct.Struct(">cI")
_LOCK_SUFFIX = ".lock"
_NEW_SUFFIX = ".new"
_NAME = re.compile(r"[1-9][0-9]{0,9}")
_MANIFEST_BYTES_MAX = 1 << 30


def checkout_owner(number: int) -> bytes:
    """Return the owner of pins that a checkout holds."""
    return _OWNER.pack(CHECKOUT_PREFIX, number)


def number_of_owner(owner: bytes) -> int | None:
    """Return whose pins these are; None when the owner is no checkout."""
    if len(owner) != _OWNER.size or not owner.startswith(CHECKOUT_PREFIX):
        return None
    number: int = _OWNER.unpack(owner)[1]
    return number


def manifest_path(store: Store, number: int) -> Path:
    """Return where a checkout's manifest is."""
    return store.path / CHECKOUTS_DIRECTORY / str(number)


@dataclass(frozen=True, slots=True)
class DamagedManifest:
    """A manifest that cannot be read, and why."""

    number: int
    why: str


# --- looking ---------------------------------------------------------------------------------


def list_numbers(store: Store) -> list[int]:
    """Return the numbers of all checkouts that have a manifest, readable or not."""
    names = store.disk.listdir(store.path / CHECKOUTS_DIRECTORY)
    return sorted(int(name) for name in names if _NAME.fullmatch(name))


def read_checkout(store: Store, number: int) -> Manifest:
    """Return the manifest of a checkout.

    Raises:
        NotFoundError: there is no such checkout. CorruptError: its manifest is damaged.
    """
    path = manifest_path(store, number)
    try:
        file = store.disk.open(path)
    except FileNotFoundError:
        raise NotFoundError(f"no checkout {number} in {store.path}") from None
    try:
        data = store.disk.pread(file, min(store.disk.size(file), _MANIFEST_BYTES_MAX), 0)
    finally:
        file.close()
    try:
        manifest = decode_manifest(data)
    except StoreError as exc:
        raise type(exc)(f"{path}: {exc}") from exc
    if manifest.number != number:
        raise CorruptError(f"{path} is the manifest of checkout {manifest.number}")
    return manifest


def read_checkouts(store: Store) -> tuple[list[Manifest], list[DamagedManifest]]:
    """Return all manifests, and those that cannot be read."""
    found: list[Manifest] = []
    damaged: list[DamagedManifest] = []
    for number in list_numbers(store):
        try:
            found.append(read_checkout(store, number))
        except NotFoundError:
            continue  # removed meanwhile
        except StoreError as exc:
            damaged.append(DamagedManifest(number, str(exc)))
    return found, damaged


def roots_of(manifest: Manifest) -> list[TreeEntry]:
    """Return the directory entries that a checkout shows or is being made to show."""
    return [shown.root for shown in (manifest.now, manifest.next) if shown is not None]


def needed_pins(store: Store, txn: ReadTxn, manifest: Manifest) -> set[RecordId]:
    """Return the records that a checkout must hold.

    Raises:
        MissingRecordError: a pack is not in the store.
    """
    needed = {record_id for root in roots_of(manifest) for record_id in entry_references(root)}
    needed.update(store.chunk_table_of(txn, held.pack) for held in manifest.packs)
    return needed


# --- changing --------------------------------------------------------------------------------


class Registration:
    """A checkout that this process is making or changing. Close it, or use it in ``with``.

    In this order: ``hold`` what will be needed; ``save`` a manifest that names it; make links;
    ``save`` the manifest of what is there now; ``settle``. Or remove the links; ``drop``.

    Attributes:
        number: the checkout's. Never given twice (by one index).
        owner: of its pins, for ``whole.hold`` and ``assemble``.
        manifest: as it was saved last; None before the first ``save``.
    """

    def __init__(self, store: Store, number: int, lock: File, manifest: Manifest | None) -> None:
        self._store = store
        self._lock = lock
        self.number = number
        self.owner = checkout_owner(number)
        self.manifest = manifest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def hold(self, roots: Iterable[TreeEntry], packs: Iterable[int] = ()) -> None:
        """Pin trees, and packs as a whole, durably; what is pinned already stays so.

        Raises:
            MissingRecordError: a tree or a pack has gone.
        """
        with self._store.transaction() as txn:
            for root in roots:
                for record_id in entry_references(root):
                    if txn.get(Table.PINS, self.owner + record_id) is None:
                        txn.pin(self.owner, record_id)
            for pack in packs:
                hold(self._store, txn, self.owner, pack)

    def save(self, manifest: Manifest) -> None:
        """Put a new manifest in the place of the old one, durably."""
        assert manifest.number == self.number
        disk = self._store.disk
        path = manifest_path(self._store, self.number)
        new = path.with_name(path.name + _NEW_SUFFIX)
        file = disk.open(new, create=True)
        try:
            disk.truncate(file, 0)
            disk.pwrite(file, [encode_manifest(manifest)], 0)
            disk.fsync(file)
        finally:
            file.close()
        disk.rename(new, path)
        disk.fsync_dir(path.parent)
        self.manifest = manifest

    def settle(self) -> None:
        """Drop the pins that the saved manifest does not need."""
        with self._store.transaction() as txn:
            keep = needed_pins(self._store, txn, self.manifest) if self.manifest else set()
            for record_id in list(_pinned(txn, self.owner)):
                if record_id not in keep:
                    txn.unpin(self.owner, record_id)

    def drop(self) -> None:
        """End the checkout: its manifest goes, then its pins. No link may be left."""
        disk = self._store.disk
        path = manifest_path(self._store, self.number)
        disk.unlink(path)
        disk.fsync_dir(path.parent)
        self.manifest = None

    def close(self) -> None:
        """Let others change it; without a manifest it never was."""
        if self._lock.fd < 0:
            return
        try:
            if self.manifest is None:
                _release(self._store, self.number)
        finally:
            close_lock(self._lock)


def begin_checkout(store: Store) -> Registration:
    """Take a number for a new checkout, and lock it."""
    directory = store.path / CHECKOUTS_DIRECTORY
    store.disk.mkdir(directory)
    store.disk.fsync_dir(store.path)
    while True:
        with store.transaction() as txn:
            number = txn.next_number(CHECKOUT_COUNTER)
        lock = _lock(store, number, create=True)
        if lock is not None and not store.disk.link_count(manifest_path(store, number)):
            return Registration(store, number, lock, None)


def open_checkout(store: Store, number: int) -> Registration:
    """Lock a checkout to change it.

    Raises:
        NotFoundError: there is none. StoreBusyError: another process changes it.
        CorruptError: its manifest is damaged.
    """
    read_checkout(store, number)
    lock = _lock(store, number, create=True)
    if lock is None:
        raise StoreBusyError(f"another process is changing checkout {number} of {store.path}")
    try:
        return Registration(store, number, lock, read_checkout(store, number))
    except BaseException:
        close_lock(lock)
        raise


def drop_abandoned(store: Store) -> int:
    """Drop pins that no manifest needs and no live process is about to name; return how many.

    For gc: a process died while it made, changed or removed a checkout.
    """
    with store.reading() as txn:
        numbers = set(_owners(txn))
    dropped = 0
    for number in sorted(numbers):
        lock = _lock(store, number, create=True)
        if lock is None:
            continue  # whoever has it will see to it
        try:
            dropped += _drop_needless(store, number, lock)
        finally:
            close_lock(lock)
    return dropped


def restore_pins(store: Store, manifest: Manifest) -> list[str]:
    """Pin in a new index what a manifest names; return what is not in the store any more."""
    lost: list[str] = []
    owner = checkout_owner(manifest.number)
    wanted = {record_id for root in roots_of(manifest) for record_id in entry_references(root)}
    with store.transaction() as txn:
        for record_id in sorted(wanted):
            if txn.get(Table.RECORDS, record_id) is None:
                lost.append(f"tree {record_id.hex()}")
            else:
                txn.pin(owner, record_id)
        for held in manifest.packs:
            try:
                hold(store, txn, owner, held.pack)
            except StoreError:
                lost.append(f"pack {held.pack}")
    return lost


def _drop_needless(store: Store, number: int, lock: File) -> int:
    """Drop what a checkout that is locked holds and does not need."""
    try:
        manifest = read_checkout(store, number)
    except NotFoundError:
        manifest = None
    except StoreError:
        return 0  # nobody knows what it needs
    with store.reading() as txn:
        needed = needed_pins(store, txn, manifest) if manifest is not None else set()
        needless = sum(found not in needed for found in _pinned(txn, checkout_owner(number)))
    if manifest is None:
        _release(store, number)
    elif needless:
        Registration(store, number, lock, manifest).settle()
    return needless


def _release(store: Store, number: int) -> None:
    """Drop all pins of a checkout that has no manifest; its lock, which is held, goes last."""
    path = manifest_path(store, number)
    with store.transaction() as txn:
        txn.release_pins(checkout_owner(number))
    store.disk.unlink(path.with_name(path.name + _NEW_SUFFIX))
    store.disk.unlink(_lock_path(store, number))


def _lock_path(store: Store, number: int) -> Path:
    return store.path / CHECKOUTS_DIRECTORY / f"{number}{_LOCK_SUFFIX}"


def _lock(store: Store, number: int, *, create: bool) -> File | None:
    path = _lock_path(store, number)
    store.disk.mkdir(path.parent)
    while True:
        file = open_lock(store.disk, path, write=True, create=create)
        if not store.disk.lock(file):
            close_lock(file)
            return None
        if same_file(file, path):
            return file
        close_lock(file)  # its checkout was just being removed


def _pinned(txn: ReadTxn, owner: bytes) -> Iterator[RecordId]:
    for key, _ in txn.scan(Table.PINS, prefix=owner):
        found, record_id = split_pin_key(key)
        if found == owner:
            yield record_id


def _owners(txn: ReadTxn) -> Iterator[int]:
    """Yield each checkout that has pins, skipping over its pins."""
    start = CHECKOUT_PREFIX
    while True:
        first = next(txn.scan(Table.PINS, prefix=CHECKOUT_PREFIX, start=start), None)
        if first is None:
            return
        number = number_of_owner(split_pin_key(first[0])[0])
        if number is None:
            start = first[0] + b"\0"
            continue
        yield number
        start = checkout_owner(number) + b"\xff" * 17
