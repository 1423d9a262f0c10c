"""Replaying a journal: the view becomes what it was when its daemon died.

The same code applies names and attributes as when they were first recorded (state.py); the bytes of
files are put together again from the journal and the staging files. Source: docs/format.md,
"Journal".
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.errors import MissingRecordError, NamespaceError, StaleError
from dedupfs.format.journal import (
    Adopt,
    Attributes,
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
from dedupfs.namespace.applying import apply
from dedupfs.namespace.journal import read_journal
from dedupfs.namespace.openfile import OpenFile
from dedupfs.namespace.settle import settle
from dedupfs.namespace.staging import Staging, staging_path
from dedupfs.namespace.state import ViewState

log = logging.getLogger(__name__)

ATTEMPTS = 3


@dataclass(slots=True)
class _Staged:
    """A staging file as the crash left it, and what the journal says lies over it.

    Nothing is written before the whole journal is read: of a later truncate the staging file has
    had its share already.
    """

    size: int
    writes: list[tuple[int, bytes]] = field(default_factory=list)

    def clip(self, size: int) -> None:
        """Forget journaled bytes beyond ``size``."""
        self.writes = [(start, data[: size - start]) for start, data in self.writes if start < size]


class Replay:
    """Applies one journal to a state whose root is the one that the journal names."""

    def __init__(self, state: ViewState, directory: Path) -> None:
        self._state = state
        self._directory = directory
        self._lost: dict[int, int] = {}
        self._staged: dict[int, _Staged] = {}

    def run(self, data: bytes) -> int:
        """Apply all records in ``data``; return how many bytes of it are valid.

        Raises:
            CorruptError, FormatVersionError: it is no journal. StoreError: the store failed.
        """
        _, records = read_journal(data)
        valid_bytes = 0
        for edits, next_offset in records:
            valid_bytes = next_offset
            for edit in edits.edits:
                try:
                    self._apply(edit, edits.time_ns)
                except NamespaceError as exc:
                    log.warning("journal edit does not apply edit=%r: %s", edit, exc)
        self._drop_nameless()
        return valid_bytes

    def _apply(self, edit: Edit, time_ns: int) -> None:
        if isinstance(edit, Place | Put | Remove | Attributes):
            apply(self._state, edit, time_ns)
        elif isinstance(edit, Orphan):
            file = self._state.files.get(edit.inode)
            if file is not None:
                file.orphan = True
        else:
            try:
                file = self._state.open_file(edit.inode)
            except StaleError:
                return  # a file that lost its name before the crash
            if not file.orphan:
                self._apply_bytes(file, edit)
                file.changed(time_ns or file.mtime_ns)

    def _apply_bytes(
        self,
        file: OpenFile,
        edit: Write | Stage | Dirty | Truncate | Adopt,
    ) -> None:
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
            if file.staging is not None:
                staged = self._staged[file.inode]
                staged.clip(edit.size)
                file.size = max(file.recipe.size, staged.size)
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
        path = staging_path(self._directory, edit.staging)
        if self._state.store.disk.link_count(path) == 0:
            self._lost[file.inode] = edit.staging
            return
        self._state.store.disk.chmod(path, 0o600)  # it may have been about to become a pack
        file.attach(Staging(self._state.store.disk, self._directory, edit.staging))
        if file.cutter is not None:
            file.cutter.stop_at(0)  # what was cut before the crash is not known any more
        assert file.staging is not None
        self._staged[file.inode] = _Staged(file.staging.size)
        file.size = max(file.recipe.size, file.staging.size)

    def _write_staged(self, file: OpenFile) -> None:
        """Give the staging file what the journal has of it."""
        assert file.staging is not None
        for start, data in self._staged.pop(file.inode).writes:
            file.staging.write(start, data)

    def _settle(self, file: OpenFile) -> None:
        for _ in range(ATTEMPTS):
            settle(file)
            if self._state.pin(entry_references(file.entry)):
                return
            file.revert()  # a chunk that was found was freed before it was held back
            self._state.store.drop_pending()
        raise MissingRecordError(f"inode {file.inode} cannot be settled: run 'dedupfs check'")

    def _drop_nameless(self) -> None:
        """Forget files that have no name: their mount is gone, so nobody can have them open."""
        for inode, file in list(self._state.files.items()):
            try:
                named = not file.orphan and self._state.locate(inode)[1].is_file
            except StaleError:
                named = False
            if not named:
                self._lost.pop(inode, None)
                self._state.discard(file)
            elif file.staging is not None:
                if self._is_pack(file.staging):
                    self._settle(file)  # nothing may be written to it any more
                else:
                    self._write_staged(file)
        for inode, number in self._lost.items():
            log.error(
                "staging file is missing: bytes of a changed file are lost inode=%d file=%s",
                inode,
                staging_path(self._directory, number),
            )

    def _is_pack(self, staging: Staging) -> bool:
        return self._state.store.disk.link_count(staging.path) > 1
