"""Which packs the links of a checkout point at: found whole, shared with others, or assembled.

Knows contents and packs, no directory outside of the store.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.errors import DedupfsError, MissingRecordError, StoreError
from dedupfs.format.manifest import HeldPack
from dedupfs.model import PackKind, TreeEntry
from dedupfs.namespace.checkouts import Registration, read_checkout, read_checkouts
from dedupfs.namespace.contents import load_recipe
from dedupfs.recipe import Recipe
from dedupfs.store import Store
from dedupfs.store.assemble import assemble
from dedupfs.store.limits import StoreLimit
from dedupfs.store.whole import candidate_pack, is_whole


@dataclass(slots=True)
class Linked:
    """What was found for the contents of files.

    ``assembled_bytes``: of files that were written once more; ``left_bytes`` of those are in
    another pack, too, which is also kept whole. ``damaged``: contents that cannot be read.
    """

    packs: dict[bytes, int] = field(default_factory=dict)
    assembled: int = 0
    assembled_bytes: int = 0
    left_bytes: int = 0
    damaged: list[bytes] = field(default_factory=list)


class PackFinder:
    """Finds or makes a pack for each content, held for a checkout that is being made."""

    def __init__(self, store: Store, registration: Registration) -> None:
        self._store = store
        self._registration = registration
        self._limit = StoreLimit(store)
        self._limit.reload()
        self._others = _links_of_others(store, registration.number)
        self._shown = {pack for _number, pack in self._others.values()}
        if registration.manifest is not None:
            self._shown.update(held.pack for held in registration.manifest.packs)

    def find(self, files: Mapping[bytes, TreeEntry]) -> Linked:
        """Return a pack for the content of each of ``files``, which are by content.

        Raises:
            StoreFullError: there is no room to assemble a file; QuotaError: nor by the limit.
        """
        linked = Linked()
        candidates = {content: self._candidate(content) for content in files}
        self._hold({pack for pack in candidates.values() if pack is not None})
        for content, entry in files.items():
            try:
                pack = self._settle(content, candidates[content], linked)
            except MissingRecordError:
                linked.damaged.append(content)
                continue
            except StoreError as exc:
                if exc.exit_code != StoreError.exit_code:
                    raise
                linked.damaged.append(content)
                continue
            linked.packs[content] = pack
            if pack not in self._shown:
                self._give_time(pack, entry.mtime_ns)
        return linked

    def _candidate(self, content: bytes) -> int | None:
        other = self._others.get(content)
        if other is not None:
            return other[1]
        try:
            return candidate_pack(self._store, load_recipe(self._store, content))
        except StoreError:
            return None  # assembling it will say what is wrong

    def _hold(self, packs: Iterable[int]) -> None:
        listed = sorted(packs)
        try:
            self._registration.hold((), listed)
        except MissingRecordError:
            for pack in listed:
                try:
                    self._registration.hold((), [pack])
                except MissingRecordError:
                    continue  # it went meanwhile; ``_settle`` looks again

    def _settle(self, content: bytes, candidate: int | None, linked: Linked) -> int:
        recipe = load_recipe(self._store, content)
        if candidate is not None and self._is_kept(content, recipe, candidate):
            return candidate
        self._limit.require(recipe.size)  # what has moved there is given back elsewhere
        made = assemble(self._store, recipe, self._registration.owner)
        self._limit.look_again()
        linked.assembled += 1
        linked.assembled_bytes += recipe.size
        linked.left_bytes += made.left_bytes
        return made.pack

    def _is_kept(self, content: bytes, recipe: Recipe, pack: int) -> bool:
        other = self._others.get(content)
        if other is not None and other[1] == pack:
            try:  # as long as another checkout names it, nobody has let go of it
                if (content, pack) in read_checkout(self._store, other[0]).links:
                    return True
            except DedupfsError:
                pass  # removed meanwhile
        try:
            return is_whole(self._store, recipe, pack)
        except StoreError:
            return False

    def _give_time(self, pack: int, mtime_ns: int) -> None:
        """Let a pack that nobody shows yet have the time of the file that it is."""
        file = self._store.reader.open_pack(pack)
        self._store.disk.touch(file, mtime_ns)


def _links_of_others(store: Store, number: int) -> dict[bytes, tuple[int, int]]:
    manifests, _damaged = read_checkouts(store)
    return {
        content: (manifest.number, pack)
        for manifest in manifests
        if manifest.number != number
        for content, pack in manifest.links
    }


def pack_path(store: Store, pack: int) -> Path:
    """Return where the file of a verbatim pack is."""
    return store.layout.pack(pack, PackKind.VERBATIM)


def held_packs(store: Store, packs: Iterable[int]) -> tuple[HeldPack, ...]:
    """Return packs for a manifest, as they are now."""
    found = []
    for pack in sorted(set(packs)):
        status = pack_path(store, pack).stat()
        found.append(HeldPack(pack, status.st_size, status.st_mtime_ns))
    return tuple(found)
