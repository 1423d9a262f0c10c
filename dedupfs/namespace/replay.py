"""Replaying a journal: the view becomes what it was when its daemon died.

The same code applies names and attributes as when they were first recorded (applying.py); the bytes
of files are put together again from the journal and the staging files. Source: docs/format.md,
"Journal".
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from dedupfs.errors import MissingRecordError, NamespaceError, StaleError
from dedupfs.format.journal import (
    Adopt,
    Attributes,
    Cut,
    Dirty,
    Edit,
    Orphan,
    Place,
    Put,
    Remove,
    Stage,
    Truncate,
    Write,
)
from dedupfs.format.tree import decode_extents, entry_references
from dedupfs.model import TreeEntry
from dedupfs.namespace.applying import apply
from dedupfs.namespace.directory import CATALOG_SLOTS_START, Directory
from dedupfs.namespace.inodes import ROOT_NUMBER, directory_number
from dedupfs.namespace.journal import read_journal
from dedupfs.namespace.openfile import OpenFile
from dedupfs.namespace.settle import settle
from dedupfs.namespace.staging import Staging, staging_path
from dedupfs.namespace.state import ViewState
from dedupfs.namespace.writing import clip, cut

log = logging.getLogger(__name__)

ATTEMPTS = 3


@dataclass(slots=True)
class _Staged:
    """A staging file as the crash left it, and what the journal says lies over it.

    Nothing is written before the whole journal is read: of a later truncate the staging file has
    had its share already.
    """

    size: int
    told_ns: int
    """When the journal last told of the file."""
    times_told: bool
    """Whether the journal tells all of its times."""
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    cut: int | None = None
    """To which size it may still have to be cut short: that was the last edit of the bytes."""

    def clip(self, size: int) -> None:
        """Forget journaled bytes beyond ``size``."""
        self.writes = [(start, data[: size - start]) for start, data in self.writes if start < size]


class Replay:
    """Applies one journal to a state whose root is the one that the journal names."""

    def __init__(
        self,
        state: ViewState,
        directory: Path | None,
        *,
        keep: Collection[int] | None = None,
        since: tuple[int, int] | None = None,
    ) -> None:
        """Make one for a journal in ``directory`` (None: nothing but places is in it).

        ``keep``: the daemon before this one died, its mount lives on, and these inodes are open in
        it: those without a name are kept, and so are directories without one. ``since``: generation
        and length that the journal had before the last request of that daemon.
        """
        self._state = state
        self._directory = directory
        self._keep = keep
        self._since = since
        self.did_request = False
        """Whether the request that began at ``since`` is in the journal."""
        self._lost: dict[int, int] = {}
        self._staged: dict[int, _Staged] = {}

    def run(self, data: bytes) -> int:
        """Apply all records in ``data``; return how many bytes of it are valid.

        Raises:
            CorruptError, FormatVersionError: it is no journal. StoreError: the store failed.
        """
        header, valid_bytes, records = read_journal(data)
        for edits, next_offset in records:
            if self._since is not None and (header.generation, valid_bytes) >= self._since:
                self.did_request |= any(self._is_of_request(edit) for edit in edits.edits)
            valid_bytes = next_offset
            for edit in edits.edits:
                try:
                    self._apply(edit, edits.time_ns)
                except NamespaceError as exc:
                    log.warning("journal edit does not apply edit=%r: %s", edit, exc)
        self._drop_removed()
        self._drop_nameless()
        return valid_bytes

    def _apply(self, edit: Edit, time_ns: int) -> None:
        if isinstance(edit, Place | Put | Remove | Attributes):
            apply(self._state, edit, time_ns)
            if isinstance(edit, Put) and not edit.entry.is_directory:
                self._note_told(edit, time_ns)
        elif isinstance(edit, Orphan):
            self._orphan(edit, time_ns)
        else:
            if isinstance(edit, Stage):  # also of a file that is gone: this journal keeps naming it
                self._state.next_staging = max(self._state.next_staging, edit.staging + 1)
            try:
                file = self._state.open_file(edit.inode)
            except StaleError:
                return  # a file that lost its name before the crash
            if not file.orphan or self._is_kept(file.inode):
                self._apply_bytes(file, edit)
                file.changed(time_ns)
                if file.inode in self._staged:
                    self._staged[file.inode].told_ns = time_ns

    def _is_of_request(self, edit: Edit) -> bool:
        """Whether an edit is what a request asked for, and not what had to be said before it.

        That is a place, or the entry of a snapshot that becomes the view's own.
        """
        if isinstance(edit, Put) and self._state.is_catalog and edit.directory == ROOT_NUMBER:
            return edit.entry.slot >= CATALOG_SLOTS_START
        return isinstance(edit, Put | Remove | Attributes)

    def _note_told(self, edit: Put, time_ns: int) -> None:
        holder = self._state.directories.get(edit.directory)
        if holder is None or edit.entry.is_link or not self._staged:
            return
        staged = self._staged.get(self._state.inode_of(holder, edit.entry))
        if staged is not None:
            staged.told_ns = time_ns

    def _is_kept(self, inode: int) -> bool:
        return self._keep is not None and inode in self._keep

    def _orphan(self, edit: Orphan, time_ns: int) -> None:
        state, entry = self._state, edit.entry
        if entry is not None and entry.is_directory:
            if self._keep is not None:
                self._keep_directory(edit.inode, entry)
            return
        directory = state.directories.get(directory_number(edit.inode))
        if entry is None and directory is not None and directory.inode == edit.inode:
            if directory.removed:
                del state.directories[directory.number]  # the kernel forgot it
                state.inodes.forget(edit.inode)
            return
        file = state.files.get(edit.inode)
        if file is None and entry is not None and self._is_kept(edit.inode):
            file = state.open_new(edit.inode, entry)
        if file is None:
            return
        file.orphan = True
        if entry is not None:
            file.entry = msgspec.structs.replace(
                entry,
                content=file.entry.content,
                size=file.entry.size,
                hole_bytes=file.entry.hole_bytes,
            )
            file.mtime_ns, file.ctime_ns = entry.mtime_ns, entry.ctime_ns
            if edit.inode in self._staged:
                self._staged[edit.inode].told_ns = time_ns

    def _keep_directory(self, inode: int, entry: TreeEntry) -> None:
        """Keep a directory without a name: it may be somebody's working directory."""
        number = directory_number(inode)
        found = self._state.directories.get(number)
        if found is None:
            found = Directory(self._state.trees, number, entry, self._state.root, {})
            self._state.directories[number] = found
        found.entry = entry
        found.removed = True

    def _apply_bytes(
        self,
        file: OpenFile,
        edit: Write | Stage | Dirty | Truncate | Adopt | Cut,
    ) -> None:
        staged = self._staged.get(file.inode)
        if staged is not None and not isinstance(edit, Stage):
            staged.cut = edit.size if isinstance(edit, Cut) else None
        if isinstance(edit, Stage):
            self._stage(file, edit)
        elif file.inode in self._lost:
            return
        elif isinstance(edit, Write):
            self._write(file, edit)
        elif isinstance(edit, Truncate):
            if file.buffer is None and file.staging is None:
                file.become_buffered(min(edit.size, file.size))
            file.apply_truncate(edit.size)
            if staged is not None:
                file.size = max(file.recipe.size, staged.size)
                staged.clip(min(edit.size, file.size))  # or it would grow when they are written
        elif file.staging is not None and isinstance(edit, Dirty):
            file.dirty.add(edit.start, edit.stop)
        elif file.staging is not None and isinstance(edit, Adopt):
            file.apply_adopt(edit.start, decode_extents(edit.extents))

    def _write(self, file: OpenFile, edit: Write) -> None:
        if file.staging is not None:
            stop = edit.file_offset + len(edit.data)
            self._staged[file.inode].writes.append((edit.file_offset, edit.data))
            file.note_journaled(edit.file_offset, stop)
            file.size = max(file.size, stop)
            return
        if file.buffer is None:
            file.become_buffered(file.size)
        assert file.buffer is not None
        stop = edit.file_offset + len(edit.data)
        if edit.file_offset > len(file.buffer):
            file.buffer.extend(bytes(edit.file_offset - len(file.buffer)))
        file.buffer[edit.file_offset : stop] = edit.data
        file.size = len(file.buffer)

    def _stage(self, file: OpenFile, edit: Stage) -> None:
        if file.staging is not None:
            self._write_staged(file)
            self._settle(file)  # it was a pack already when the view was brought back last
        assert self._directory is not None
        path = staging_path(self._directory, edit.staging)
        if self._state.store.disk.link_count(path) == 0:
            self._lost[file.inode] = edit.staging
            file.lost = True
            return
        self._lost.pop(file.inode, None)
        self._state.store.disk.chmod(path, 0o600)  # it may have been about to become a pack
        kept = bytes(file.buffer or b"")
        file.attach(Staging(self._state.store.disk, self._directory, edit.staging, found=True))
        if file.cutter is not None:
            file.cutter.stop_at(0)  # what was cut before the crash is not known any more
        assert file.staging is not None
        writes = [(0, kept)] if kept else []
        self._staged[file.inode] = _Staged(
            file.staging.size, file.mtime_ns, edit.times_told, writes
        )
        file.size = max(file.recipe.size, file.staging.size, len(kept))

    def _write_staged(self, file: OpenFile) -> None:
        """Give the staging file what the journal has of it."""
        assert file.staging is not None
        self._take_time(file)
        staged = self._staged.pop(file.inode)
        for start, data in staged.writes:
            file.staging.write(start, data, file.mtime_ns)
        if staged.cut is not None:
            cut(file, staged.cut, clip(file, staged.cut, file.mtime_ns), file.mtime_ns)
        file.staging.touch(file.mtime_ns)

    def _take_time(self, file: OpenFile) -> None:
        """Take over when bytes were written that the staging file alone tells of."""
        assert file.staging is not None
        staged = self._staged[file.inode]
        if not staged.times_told and file.staging.mtime_ns > staged.told_ns:
            file.changed(file.staging.mtime_ns)

    def _take_cut(self, file: OpenFile) -> None:
        """Take over that a file was cut short: it was before it became a pack."""
        size = self._staged[file.inode].cut
        if size is not None and file.staging is not None:
            file.apply_truncate(size)
            file.size = max(size, file.staging.size)

    def _settle(self, file: OpenFile) -> None:
        for _ in range(ATTEMPTS):
            settle(file)
            if self._state.pin(entry_references(file.entry)):
                return
            file.revert()  # a chunk that was found was freed before it was held back
            self._state.store.drop_pending()
        raise MissingRecordError(f"inode {file.inode} cannot be settled: run 'dedupfs check'")

    def _drop_removed(self) -> None:
        """Forget directories that were removed: a fold would put back what it finds changed.

        Only now: the edit that removes a name may be followed by one that puts it elsewhere.
        """
        for directory in list(self._state.directories.values()):
            if directory.parent is None or directory.is_links or directory.removed:
                continue
            try:
                self._state.locate(directory.inode)
            except StaleError:
                directory.removed = True
                del self._state.directories[directory.number]
                self._state.inodes.forget(directory.inode)

    def _drop_nameless(self) -> None:
        """Forget files that have no name, unless their mount is there and somebody has them open.

        Of those whose mount is gone nobody can.
        """
        for inode, file in list(self._state.files.items()):
            try:
                named = not file.orphan and self._state.locate(inode)[1].is_file
            except StaleError:
                named = False
            if not named and self._is_kept(inode):
                self._state.held.add(inode)
                file.orphan = named = True
            if not named:
                self._lost.pop(inode, None)
                self._state.discard(file)
            elif file.staging is not None:
                if self._is_pack(file.staging):
                    self._take_time(file)
                    self._take_cut(file)
                    self._settle(file)  # nothing may be written to it any more
                else:
                    self._write_staged(file)
        for inode, number in self._lost.items():
            log.error(
                "staging file is missing: bytes of a changed file are lost inode=%d file=%08d",
                inode,
                number,
            )

    def _is_pack(self, staging: Staging) -> bool:
        return self._state.store.disk.link_count(staging.path) > 1
