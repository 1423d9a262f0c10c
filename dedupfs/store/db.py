"""The index's database: tables, read and write transactions, translated errors. lmdb only here.

Knows no row's layout (``format/keys.py``) and no pack. Source: docs/format.md, "Index".
Durable always: no flag that a power cut could turn into a corrupt database is ever used.
"""

import enum
import errno
import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import lmdb

from dedupfs.errors import CorruptError, StoreError, StoreFullError
from dedupfs.store.turns import GIVE_WAY_S, Turns

_MAP_BYTES = 1 << 40
_MAP_BYTES_MIN = 1 << 30
_READERS_MAX = 1024
_LOCK_BYTES = (_READERS_MAX + 2) * 64
"""At least LMDB's header and its slot for each reader, a cache line each."""
_DAMAGED = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.PageNotFoundError,
)


class Table(enum.Enum):
    """The index's tables; values are their names on disk."""

    META = b"meta"
    RECORDS = b"records"
    PACKS = b"packs"
    FREE = b"free"
    DEAD = b"dead"
    PINS = b"pins"
    SNAPSHOTS = b"snapshots"
    VIEWS = b"views"
    PLACES = b"places"
    HOMES = b"homes"
    SOURCES = b"sources"

    __hash__ = object.__hash__  # Enum's own costs as much as a look-up in the index


_Handles = dict[Table, "lmdb._Database"]


@contextmanager
def translated() -> Iterator[None]:
    """Turn what lmdb raises into a StoreError."""
    try:
        yield
    except lmdb.Error as exc:
        raise _translate(exc) from exc


def _translate(exc: lmdb.Error) -> StoreError:
    if isinstance(exc, lmdb.MapFullError) or exc.code in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(f"the index cannot grow: {exc}")
    if isinstance(exc, _DAMAGED):
        return CorruptError(f"the index is damaged, run dedupfs reindex: {exc}")
    if isinstance(exc, lmdb.MapResizedError):
        return StoreError("the index is larger than the address space this process may use")
    return StoreError(f"the index failed: {exc}")


class ReadTxn:
    """One consistent state of the index; keys and values are opaque bytes."""

    def __init__(self, txn: "lmdb.Transaction[bytes]", handles: _Handles) -> None:
        self.raw = txn
        self.handles = handles

    @property
    def state_number(self) -> int:
        """Number of the transaction that made this state: as long as it stays, all stays."""
        number: int = self.raw.id()
        return number

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value of ``key``, or None."""
        try:
            return self.raw.get(key, db=self.handles[table])
        except lmdb.Error as exc:
            raise _translate(exc) from exc

    def get_many(self, table: Table, keys: Iterable[bytes]) -> list[bytes | None]:
        """Return the values of several keys, None where there is none."""
        get, handle = self.raw.get, self.handles[table]
        try:
            return [get(key, None, handle) for key in keys]
        except lmdb.Error as exc:
            raise _translate(exc) from exc

    def scan(
        self, table: Table, prefix: bytes = b"", start: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) in key order: keys that start with ``prefix`` and are >= ``start``.

        The table may be changed while the scan is under way, behind what it has yielded.
        """
        with translated(), self.raw.cursor(self.handles[table]) as cursor:
            found = cursor.set_range(max(prefix, start)) if prefix or start else cursor.first()
            while found:
                key, value = cursor.item()
                if not key.startswith(prefix):
                    return
                yield key, value
                found = cursor.next() if cursor.key() == key else cursor.set_range(key + b"\0")

    def before(self, table: Table, key: bytes) -> tuple[bytes, bytes] | None:
        """Return the last (key, value) whose key is smaller than ``key``."""
        with translated(), self.raw.cursor(self.handles[table]) as cursor:
            found = cursor.prev() if cursor.set_range(key) else cursor.last()
            return cursor.item() if found else None

    def count(self, table: Table) -> int:
        """Return how many keys a table has."""
        with translated():
            return self.raw.stat(self.handles[table])["entries"]


class WriteTxn(ReadTxn):
    """The one write transaction of all processes; sees its own changes."""

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Set ``key`` to ``value``."""
        try:
            self.raw.put(key, value, db=self.handles[table])
        except lmdb.Error as exc:
            raise _translate(exc) from exc

    def put_many(self, table: Table, rows: list[tuple[bytes, bytes]]) -> None:
        """Set many keys at once; quickest in order."""
        with translated(), self.raw.cursor(self.handles[table]) as cursor:
            cursor.putmulti(rows)

    def delete(self, table: Table, key: bytes) -> bool:
        """Remove ``key``; return whether it was there."""
        try:
            return self.raw.delete(key, db=self.handles[table])
        except lmdb.Error as exc:
            raise _translate(exc) from exc


class Database:
    """An open LMDB environment.

    The map is 1 TiB of address space (it costs nothing until used), so that it never has to be
    moved under a reader in another thread; less where a limit on address space forbids that.
    Not usable in a forked child, which may open the same one anew.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        if not create:
            self._require_begun()
        with translated():
            self._env = _open_environment(path, create)
            try:
                _keep_from_children(self.data_path)
                self._env.reader_check()
                self._handles = _open_tables(self._env)
                self._turns = Turns(self.data_path)
            except BaseException as exc:
                self._env.close()
                if isinstance(exc, OSError):
                    raise StoreError(f"cannot open {self.data_path}: {exc.strerror}") from exc
                raise
        self._records = self._handles[Table.RECORDS]

    @property
    def data_path(self) -> Path:
        """The file that grows with the index."""
        return self.path / "data.mdb"

    def _require_begun(self) -> None:
        """Refuse an empty file: LMDB would take it for a new index, and gc every pack for lost."""
        try:
            empty = not self.data_path.stat().st_size
        except OSError as exc:
            raise StoreError(f"cannot open {self.data_path}: {exc.strerror}") from exc
        if empty:
            raise CorruptError(f"{self.data_path} is empty; run dedupfs reindex")

    def close(self) -> None:
        """Close the environment; no transaction may be under way."""
        self._turns.close()
        self._env.close()

    def abandon(self) -> None:
        """In a forked child: keep nobody waiting for a turn that the parent had."""
        self._turns.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def record_row(self, record_id: bytes) -> bytes | None:
        """Return the row of RECORDS for an id: the hottest look-up, in a transaction of its own."""
        try:
            txn = self._env.begin(db=self._records)
            try:
                return txn.get(record_id)
            finally:
                txn.abort()
        except lmdb.Error as exc:
            raise _translate(exc) from exc

    def record_rows(self, record_ids: Sequence[bytes]) -> list[bytes | None]:
        """Return the rows of RECORDS for several ids, as of one moment."""
        try:
            txn = self._env.begin(db=self._records)
            try:
                return [txn.get(record_id) for record_id in record_ids]
            finally:
                txn.abort()
        except lmdb.Error as exc:
            raise _translate(exc) from exc

    @contextmanager
    def reading(self) -> Iterator[ReadTxn]:
        """Give one consistent state of the index."""
        with translated():
            txn = self._env.begin()
        try:
            yield ReadTxn(txn, self._handles)
        finally:
            txn.abort()

    @contextmanager
    def writing(self) -> Iterator[WriteTxn]:
        """Wait for other writers; commit durably at the end, or abort when the body raises."""
        with self._turns.taken():
            with translated():
                txn = self._env.begin(write=True)
            try:
                yield WriteTxn(txn, self._handles)
                with translated():
                    txn.commit()
            except BaseException:
                txn.abort()
                raise

    def give_way(self, limit_s: float = GIVE_WAY_S) -> bool:
        """Let everybody write who is waiting to; return False if that took longer than the limit.

        To be called between the transactions of long work, while none of this process's is under
        way: LMDB's lock goes to whoever asks first once it is free, and who has just given it back
        is nearly always faster than who has to be woken.
        """
        return self._turns.give_way(limit_s)


def _know_no_parents_environments() -> None:
    """In a forked child: let it open what its parent has open.

    LMDB allows that, for the locks that must not be taken twice are a process's own (fcntl(2)). But
    py-lmdb takes its list of open files along, by the keys of a function that it looks up for each
    call (lmdb/_envid.py of 3.0). It is private; without it the child is told "already open".
    """
    try:
        module: Any = importlib.import_module("lmdb._envid")
        keys_of = getattr(module.env_keys, "of_any_process", module.env_keys)
    except (ImportError, AttributeError):
        return

    def env_keys(path: object, subdir: object) -> tuple[object, ...]:
        return tuple((os.getpid(), key) for key in keys_of(path, subdir))

    module.env_keys = env_keys
    module.env_keys.of_any_process = keys_of


os.register_at_fork(after_in_child=_know_no_parents_environments)


def _open_tables(env: lmdb.Environment) -> _Handles:
    """Open every table; one transaction makes those that an older dedupfs did not have."""
    try:
        return {table: env.open_db(table.value, create=False) for table in Table}
    except lmdb.NotFoundError:
        with env.begin(write=True) as txn:
            return {table: env.open_db(table.value, txn=txn) for table in Table}


def _reserve_lock_file(path: Path) -> None:
    """Make the lock file with all its blocks, unless it is there.

    LMDB writes to it through a mapping, and a block that a full disk cannot give is then a SIGBUS.
    An existing one is not opened: closing it would drop this process's locks (fcntl(2)).
    """
    lock_path = path / "lock.mdb"
    if lock_path.exists() or not path.is_dir():
        return
    try:
        fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:  # another process was faster
        return
    except OSError:
        return  # LMDB will say what is the matter
    try:
        os.posix_fallocate(fd, 0, _LOCK_BYTES)
    except OSError as exc:
        lock_path.unlink()
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFullError(
                f"the index cannot be opened: {lock_path}: {exc.strerror}"
            ) from exc
    finally:
        os.close(fd)


def _open_environment(path: Path, create: bool) -> lmdb.Environment:
    _reserve_lock_file(path)
    map_bytes = _MAP_BYTES
    while True:
        try:
            return lmdb.open(
                os.fsencode(path),  # which need not be text
                map_size=map_bytes,
                max_dbs=len(Table) + 8,
                max_readers=_READERS_MAX,
                max_spare_txns=8,
                readahead=False,
                create=create,
                mode=0o600,
            )
        except lmdb.Error as exc:
            no_memory = isinstance(exc, lmdb.MemoryError) or exc.code == errno.ENOMEM
            if not no_memory or map_bytes <= _MAP_BYTES_MIN:
                raise
            map_bytes //= 2


def _keep_from_children(path: Path) -> None:
    """Close the file on exec: LMDB leaves that out for the descriptor that it writes with."""
    status = os.stat(path)
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that lists them is gone
            if os.path.samestat(os.fstat(int(name)), status):
                os.set_inheritable(int(name), False)
