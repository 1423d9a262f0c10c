"""Where things lie in a store's directory, and dedupfs.json: making it, reading it.

Knows no index and no record. Source: docs/format.md, "Layout" and "dedupfs.json".
"""

import contextlib
import logging
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dedupfs.chunking import ChunkingParams
from dedupfs.errors import CorruptError, FormatVersionError, StoreError, UsageError
from dedupfs.model import PackKind, StoreConfig
from dedupfs.store.codec import COMPRESSIONS
from dedupfs.store.disk import Disk

FORMAT_VERSION = 1
FEATURES: frozenset[str] = frozenset()
CONFIG_NAME = "dedupfs.json"
_DIRECTORIES = ("packs", "index", "views", "run")
_UNFINISHED = {*_DIRECTORIES, CONFIG_NAME + ".new", "lost+found"}
_SUFFIX = {PackKind.RECORDS: ".pack", PackKind.VERBATIM: ".file"}
_KIND_OF_SUFFIX = {suffix: kind for kind, suffix in _SUFFIX.items()}
_OWNER_LOCK = re.compile("[0-9a-f]{16}[.]lock")
_PACK_BYTES_MAX_LIMIT = 1 << 40
_NOBODY = 65534
"""Whose files they are that user namespaces and NFS have no owner for."""
_CURE = "'dedupfs check --repair' looks for its copy"

log = logging.getLogger(__name__)


class _Head(msgspec.Struct):
    """The fields that decide whether the rest can be understood."""

    format_version: int
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below a store's directory."""

    root: Path

    @property
    def config(self) -> Path:
        """dedupfs.json."""
        return self.root / CONFIG_NAME

    @property
    def index(self) -> Path:
        """The LMDB directory."""
        return self.root / "index"

    @property
    def packs(self) -> Path:
        """The directory of pack directories."""
        return self.root / "packs"

    @property
    def run(self) -> Path:
        """Locks and sockets of live processes."""
        return self.root / "run"

    def pack(self, pack: int, kind: PackKind) -> Path:
        """The file of a pack: 4096 consecutive numbers share a directory."""
        return self.packs / f"{pack >> 12 & 0xFF:02x}" / f"{pack:08d}{_SUFFIX[kind]}"

    def owner_lock(self, owner: bytes) -> Path:
        """The lock file of a process."""
        return self.run / f"{owner[1:].decode('ascii', 'replace')}.lock"

    def owner_of_lock(self, name: str) -> bytes | None:
        """Return the owner whose lock file has this name; None for other files."""
        return b"p" + name[:16].encode() if _OWNER_LOCK.fullmatch(name) else None

    def pack_of(self, name: str) -> tuple[int, PackKind] | None:
        """Return number and kind of the pack whose file has this name; None for other files."""
        stem, dot, suffix = name.partition(".")
        if not stem.isascii() or not stem.isdigit() or dot + suffix not in _KIND_OF_SUFFIX:
            return None
        return int(stem), _KIND_OF_SUFFIX[dot + suffix]


def require_own(root: Path) -> int:
    """Refuse the directory of another user; return its mode, 0 when it cannot be looked at.

    Whoever can write into a store can lead every process that opens it to other files (a pack that
    is a symbolic link); and files that root makes in a user's store are lost to that user.

    Raises:
        UsageError: it belongs to somebody else.
    """
    try:
        status = os.stat(root)
    except OSError:
        return 0  # what opens it says what is wrong
    if status.st_uid not in (os.geteuid(), 0, _NOBODY):
        raise UsageError(
            f"{root} belongs to user {status.st_uid}: run dedupfs as that user, or make the store "
            "your own with chown -R"
        )
    return status.st_mode


def require_reachable(root: Path) -> None:
    """Refuse what ``Store.open`` would, for whose it is; what is not there may be made.

    Raises:
        UsageError: it belongs to somebody else. StoreError: it cannot be looked into.
    """
    require_own(root)
    try:
        os.stat(root / CONFIG_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as exc:
        raise StoreError(f"cannot look into {root}: {exc.strerror}") from exc


def make_config(
    *,
    chunk_bytes_average: int,
    compression: str,
    pack_bytes_max: int,
    verbatim_bytes_min: int,
    hash_seed: int | None,
) -> StoreConfig:
    """Check the settings of a new store.

    Raises:
        UsageError: a size or a name that cannot be.
    """
    params = ChunkingParams(chunk_bytes_average // 4, chunk_bytes_average, chunk_bytes_average * 4)
    if compression not in COMPRESSIONS:
        raise UsageError(f"compression is one of {', '.join(COMPRESSIONS)}, not {compression}")
    if not 0 < pack_bytes_max <= _PACK_BYTES_MAX_LIMIT or verbatim_bytes_min < 0:
        raise UsageError("pack sizes lie between 1 B and 1 TiB")
    return StoreConfig(
        format_version=FORMAT_VERSION,
        store_id=secrets.token_hex(16),
        hash_seed=secrets.randbits(64) if hash_seed is None else hash_seed,
        chunk_bytes_min=params.minimum,
        chunk_bytes_average=params.average,
        chunk_bytes_max=params.maximum,
        compression=compression,
        verbatim_bytes_min=verbatim_bytes_min,
        pack_bytes_max=pack_bytes_max,
    )


def make_directories(layout: Layout, disk: Disk) -> None:
    """Make the empty directories of a store, continuing what an interrupted init left.

    Raises:
        UsageError: the path is a file, a store, or a directory that holds something else.
    """
    root = layout.root
    require_own(root)
    try:
        found = sorted(os.listdir(root))
    except FileNotFoundError:
        found = []
        with contextlib.suppress(FileExistsError):
            try:
                os.mkdir(root, 0o700)
            except FileNotFoundError as exc:
                raise UsageError(f"{root.parent} does not exist") from exc
            except PermissionError as exc:
                raise UsageError(f"cannot make {root}: {exc.strerror}") from exc
    except NotADirectoryError as exc:
        raise UsageError(f"{root} is a file; a store is a directory") from exc
    except PermissionError as exc:
        raise UsageError(f"cannot look into {root}: {exc.strerror}") from exc
    if CONFIG_NAME in found:
        raise UsageError(f"{root} is already a dedupfs store")
    strange = [name for name in found if name not in _UNFINISHED]
    strange = strange or [f"packs/{name}" for name in disk.listdir(layout.packs)]
    if strange:
        raise UsageError(f"{root} is not empty: it holds {strange[0]!r}")
    disk.chmod(root, 0o700)
    for name in _DIRECTORIES:
        disk.mkdir(root / name)
    disk.fsync_dir(root)
    disk.fsync_dir(root.parent)


def encode_config(config: StoreConfig) -> bytes:
    """Return the text of dedupfs.json."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"


def write_config(layout: Layout, disk: Disk, config: StoreConfig) -> None:
    """Write dedupfs.json, the last step that makes a directory a store."""
    write_whole(disk, layout.config, encode_config(config))


def write_whole(disk: Disk, path: Path, text: bytes) -> None:
    """Write a small file so that after any crash it is the old one or the new one, whole."""
    new = path.with_name(path.name + ".new")
    file = disk.open(new, create=True)
    disk.truncate(file, 0)
    disk.pwrite(file, [text], 0)
    disk.fsync(file)
    file.close()
    disk.rename(new, path)
    disk.fsync_dir(path.parent)


def read_config(layout: Layout, disk: Disk) -> StoreConfig:
    """Read dedupfs.json.

    Raises:
        UsageError: the directory is no store.
        FormatVersionError: a newer dedupfs made it, or a feature flag is unknown.
        CorruptError: the file is not what dedupfs writes.
    """
    path = layout.config
    mode = require_own(layout.root)
    if stat.S_ISDIR(mode) and mode & 0o022:
        log.warning(
            "others can write to the store, and so to your files: chmod 0700 %s", layout.root
        )
    try:
        file = disk.open(path)
    except FileNotFoundError:
        raise UsageError(_not_a_store(layout.root)) from None
    except StoreError as exc:
        if isinstance(exc.__cause__, NotADirectoryError):
            raise UsageError(f"{layout.root} is a file; a store is a directory") from exc
        raise
    text = disk.pread(file, 1 << 20, 0)
    file.close()
    return decode_config(text, path)


def _not_a_store(root: Path) -> str:
    if not root.exists():
        return f"{root} does not exist; make a store with: dedupfs init {root}"
    if (root / "packs").is_dir() and (root / "index").is_dir():
        return f"{root} is a store without its {CONFIG_NAME} ({_CURE})"
    return f"{root} is not a dedupfs store (no {CONFIG_NAME}); make one with: dedupfs init DIR"


def decode_config(text: bytes, path: Path) -> StoreConfig:
    """Decode the text of dedupfs.json; ``path`` is for messages. Errors as ``read_config``."""
    try:
        head = msgspec.json.decode(text, type=_Head)
        if head.format_version > FORMAT_VERSION:
            raise FormatVersionError(
                f"{path}: format version {head.format_version}; this dedupfs reads up to "
                f"{FORMAT_VERSION}, use a newer one"
            )
        unknown = [name for name in head.features if name not in FEATURES]
        if unknown:
            raise FormatVersionError(f"{path}: unknown feature {unknown[0]!r}; use a newer dedupfs")
        config = msgspec.json.decode(text, type=StoreConfig)
        ChunkingParams(config.chunk_bytes_min, config.chunk_bytes_average, config.chunk_bytes_max)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, UsageError) as exc:
        raise CorruptError(f"{path} is damaged ({_CURE}): {exc}") from exc
    sane = (
        config.format_version >= 1
        and 0 <= config.hash_seed < 1 << 64
        and config.compression in COMPRESSIONS
        and 0 < config.pack_bytes_max <= _PACK_BYTES_MAX_LIMIT
    )
    if not sane:
        raise CorruptError(f"{path} is damaged ({_CURE}): a value is out of range")
    return config
