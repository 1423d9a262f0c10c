"""All numbers of a store that a person may want to look at, gathered for the report and its JSON.

Knows no HTML and no terminal. Everything comes from walkers of its own kind; what cannot be counted
is told in ``gaps``. Changes nothing, and holds no state of the index for long: beside others it is
a picture of some seconds, not of one moment.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dedupfs.errors import StoreError
from dedupfs.format.manifest import Manifest
from dedupfs.format.tree import decode_view_root
from dedupfs.maintenance.forecast import Forecast
from dedupfs.maintenance.largest import (
    LargeDirectory,
    Largest,
    largest_directories,
    largest_files,
)
from dedupfs.maintenance.playing import BlockForecast, Prune, play_prunes
from dedupfs.maintenance.sharing import (
    Gap,
    Holder,
    OnProgress,
    Sharing,
    measure_sharing,
    pins_by_owner,
)
from dedupfs.maintenance.usage import StoreUsage, disk_usage, store_usage
from dedupfs.model import RecordKind, SnapshotInfo, TreeEntry
from dedupfs.namespace.checkouts import checkout_owner, read_checkouts
from dedupfs.namespace.rows import (
    TOMBSTONE_OWNER,
    ViewRow,
    decode_snapshot_row,
    decode_view_row,
    view_owner_key,
)
from dedupfs.namespace.trees import TreeReader, links_id_of, tree_id_of
from dedupfs.namespace.views import EPHEMERAL_PREFIX, view_directory, view_owner
from dedupfs.store import ReadTxn, Store, Table
from dedupfs.store.owner import OWNER_PREFIX, is_dead

T = TypeVar("T")

MATRIX_MAX = 60
"""How many snapshots and views the matrix compares; of more, the newest ones."""
FILES_MAX = 20
DIRECTORIES_MAX = 30


@dataclass(frozen=True, slots=True)
class HolderSpace:
    """What a snapshot or a view takes; all sizes in bytes.

    ``reached_bytes``: stored, of all records that it reaches; of these ``exclusive_bytes`` are
    freed when it alone goes, and ``new_bytes`` are in no older snapshot (views come last).
    ``frees_bytes``: what the disk gets back then, in whole blocks; None where that was too much to
    play through. ``own_bytes``: a view's files that are not in packs. ``mounted_on``: where, if it
    is.
    """

    kind: str
    name: str
    created_ns: int
    entries: int
    logical_bytes: int
    reached_bytes: int
    exclusive_bytes: int
    new_bytes: int
    frees_bytes: int | None = None
    own_bytes: int = 0
    pinned: bool = False
    source: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    base: str = ""
    owner_pid: int | None = None
    mounted_on: str = ""

    @property
    def shared_bytes(self) -> int:
        """What others hold as well, so that it stays when this one goes."""
        return self.reached_bytes - self.exclusive_bytes


@dataclass(frozen=True, slots=True)
class CheckoutSpace:
    """A directory outside of the store whose links need packs whole, and what it holds for them.

    ``snapshot`` and ``link``: what it shows and how its files came to be; empty while it is made.
    """

    number: int
    kind: str
    directory: bytes
    created_ns: int
    snapshot: str
    link: str
    reached_bytes: int
    exclusive_bytes: int


@dataclass(frozen=True, slots=True)
class Growth:
    """The store as it was when a snapshot had been made, counting what is still there."""

    name: str
    created_ns: int
    logical_bytes: int
    stored_bytes: int
    new_bytes: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """``rows[a][b]``: stored bytes that both reach. ``left_off``: how many are not compared."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    left_off: int = 0


@dataclass(slots=True)
class Overview:
    """Everything. ``spaces`` has snapshots in the order they were made, then views by name."""

    store_path: str
    made_ns: int
    seconds: float
    usage: StoreUsage
    spaces: list[HolderSpace] = field(default_factory=list)
    checkouts: list[CheckoutSpace] = field(default_factory=list)
    growth: list[Growth] = field(default_factory=list)
    matrix: Matrix = Matrix((), (), ())
    prunes: list[Prune] = field(default_factory=list)
    largest: Largest = field(default_factory=Largest)
    directories_of: str = ""
    directories: list[LargeDirectory] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    gap_count: int = 0


@dataclass(slots=True)
class _Found:
    """Snapshots, oldest first, views and checkouts: holders are in this order, and others last."""

    snapshots: list[SnapshotInfo] = field(default_factory=list)
    views: list[ViewRow] = field(default_factory=list)
    checkouts: list[Manifest] = field(default_factory=list)
    holders: list[Holder] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)


def take_overview(store: Store, progress: OnProgress | None = None) -> Overview:
    """Look at everything in a store once."""
    begun_s = time.monotonic()
    made_ns = time.time_ns()
    found = _find_holders(store)
    overview = Overview(str(store.path), made_ns, 0.0, store_usage(store), gaps=found.gaps)
    sharing = measure_sharing(store, found.holders, progress)
    trees = TreeReader(store)
    with store.reading() as txn:
        blocks = BlockForecast(Forecast(store, txn))
        overview.prunes = play_prunes(found.snapshots, sharing, blocks, made_ns)
        overview.spaces = list(_spaces(store, trees, found, sharing, blocks))
    overview.checkouts = list(_checkouts(found, sharing))
    overview.growth = _growth(overview.spaces)
    overview.matrix = _matrix(overview.spaces, sharing)
    newest_first = found.snapshots[::-1]
    overview.largest = largest_files(trees, newest_first, FILES_MAX)
    if newest_first:
        overview.directories_of = newest_first[0].name
        overview.directories = largest_directories(trees, newest_first[0].root, DIRECTORIES_MAX)
    if not sharing.gap_count:  # else it is told already, with who is hit
        found.gaps += [Gap(problem, ()) for problem in overview.usage.problems]
    overview.gap_count = len(found.gaps) + sharing.gap_count
    overview.gaps += sharing.gaps
    overview.seconds = time.monotonic() - begun_s
    return overview


def _find_holders(store: Store) -> _Found:
    found = _Found()
    found.checkouts, damaged = read_checkouts(store)
    found.gaps += [Gap(f"checkout {it.number}: {it.why}", ()) for it in damaged]
    with store.reading() as txn:
        snapshots = list(_sound_rows(txn, Table.SNAPSHOTS, decode_snapshot_row, found.gaps))
        views = list(_sound_rows(txn, Table.VIEWS, decode_view_row, found.gaps))
        pins = pins_by_owner(txn)
    snapshots.sort(key=lambda pair: (pair[0].sequence, pair[0].name))
    found.snapshots = [info for info, _ in snapshots]
    found.holders = [Holder("snapshot", info.name, (root_id,)) for info, root_id in snapshots]
    for view in views:
        held = pins.pop(view_owner_key(view.view_id), ())
        if not view.name.startswith(EPHEMERAL_PREFIX) or view_owner(store, view.name) is not None:
            found.views.append(view)
            found.holders.append(Holder("view", view.name, (view.root_id, *held)))
    for manifest in found.checkouts:
        held = pins.pop(checkout_owner(manifest.number), ())
        found.holders.append(Holder("checkout", str(manifest.number), held))
    pins.pop(TOMBSTONE_OWNER, None)
    for owner, held in sorted(pins.items()):
        is_process = owner.startswith(OWNER_PREFIX)
        # Of a dead process gc drops them.
        if not is_process or not is_dead(store.layout, store.disk, owner, tidy=False):
            found.holders.append(Holder("other", owner.decode(errors="backslashreplace"), held))
    return found


def _sound_rows(
    txn: ReadTxn, table: Table, decode: Callable[[bytes], T], gaps: list[Gap]
) -> Iterator[T]:
    for key, row in txn.scan(table):
        try:
            yield decode(row)
        except StoreError as exc:
            name = key.decode(errors="backslashreplace")
            gaps.append(Gap(f"the row {name} of {table.name}: {exc}", ()))


def _checkouts(found: _Found, sharing: Sharing) -> Iterator[CheckoutSpace]:
    reached = sharing.reached()
    first = len(found.snapshots) + len(found.views)
    for number, manifest in enumerate(found.checkouts, start=first):
        shown = manifest.now or manifest.next
        yield CheckoutSpace(
            manifest.number,
            manifest.kind,
            manifest.directory,
            manifest.created_ns,
            shown.snapshot if shown is not None else "",
            shown.link if shown is not None else "",
            reached[number].stored_bytes,
            sharing.only_in([number]).stored_bytes,
        )


def _spaces(
    store: Store, trees: TreeReader, found: _Found, sharing: Sharing, blocks: BlockForecast
) -> Iterable[HolderSpace]:
    reached, new = sharing.reached(), sharing.first_in()
    for number, info in enumerate(found.snapshots):
        alone = sharing.only_in([number])
        yield HolderSpace(
            "snapshot",
            info.name,
            info.created_ns,
            info.root.count,
            _logical_bytes(trees, info.root),
            reached[number].stored_bytes,
            alone.stored_bytes,
            new[number].stored_bytes,
            blocks.frees(alone, [info.name]),
            pinned=info.pinned,
            source=info.source,
            tags=tuple(sorted(info.tags.items())),
        )
    for number, view in enumerate(found.views, start=len(found.snapshots)):
        root = _view_root(store, view)
        alone = sharing.only_in([number])
        owner = view_owner(store, view.name)
        yield HolderSpace(
            "view",
            view.name,
            view.created_ns,
            root.count if root is not None else 0,
            _logical_bytes(trees, root) if root is not None else 0,
            reached[number].stored_bytes,
            alone.stored_bytes,
            new[number].stored_bytes,
            blocks.frees(alone, (), [view.name]),
            disk_usage(view_directory(store.path, view.name)).disk_bytes,
            base=view.base,
            owner_pid=owner.pid if owner is not None else None,
            mounted_on=owner.mountpoint if owner is not None else "",
        )


def _view_root(store: Store, view: ViewRow) -> TreeEntry | None:
    try:
        return decode_view_root(store.get(view.root_id, RecordKind.VIEW_ROOT)).root
    except StoreError:
        return None  # folded meanwhile, or damaged: then the walk has told


def _logical_bytes(trees: TreeReader, root: TreeEntry) -> int:
    """Return the bytes of all files below a root, a hard-linked one once."""
    links_id = links_id_of(root)
    if links_id is None:
        return root.size
    ignore: Callable[[StoreError], None] = lambda _error: None  # noqa: E731  the walk has told
    linked = sum(inode.size for inode in trees.sound_entries(links_id, ignore) if inode.is_file)
    return linked + sum(
        entry.size
        for entry in trees.sound_entries(tree_id_of(root), ignore)
        if entry.is_directory or (entry.is_file and not entry.is_link)
    )


def _growth(spaces: Sequence[HolderSpace]) -> list[Growth]:
    points = []
    logical_bytes = stored_bytes = 0
    for space in spaces:
        if space.kind == "snapshot":
            logical_bytes += space.logical_bytes
            stored_bytes += space.new_bytes
            points.append(
                Growth(space.name, space.created_ns, logical_bytes, stored_bytes, space.new_bytes)
            )
    return points


def _matrix(spaces: Sequence[HolderSpace], sharing: Sharing) -> Matrix:
    """Compare all, or the newest of them; views count as newer than snapshots."""
    numbers = range(max(0, len(spaces) - MATRIX_MAX), len(spaces))
    return Matrix(
        tuple(spaces[number].name for number in numbers),
        tuple(spaces[number].kind for number in numbers),
        tuple(map(tuple, sharing.matrix(numbers))),
        len(spaces) - len(numbers),
    )
