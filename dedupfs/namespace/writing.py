"""Writing: the bytes that a request brings go to an open file, and to where SIGKILL spares them.

Journal and staging file come first, and the file in memory takes over what they have: that half is
``OpenFile``'s, for replay alike. Knows no names. Source: docs/architecture.md, "Write".
"""

from collections.abc import Sequence
from contextlib import suppress

from dedupfs.errors import StoreError, TooLargeError
from dedupfs.format.journal import Adopt, Cut, Edit, Stage, Truncate, Write
from dedupfs.format.tree import encode_extents
from dedupfs.model import FILE_BYTES_MAX, HOLE, Extent
from dedupfs.namespace.journaling import append_file
from dedupfs.namespace.openfile import OpenFile
from dedupfs.namespace.state import ViewState


def write(state: ViewState, file: OpenFile, file_offset: int, data: bytes, now_ns: int) -> None:
    """Write ``data``; when this returns, SIGKILL cannot lose it.

    Raises:
        TooLargeError: beyond the largest file. StoreFullError, StoreError: nothing that can be
            read changed; after a crash the bytes may be there, if the journal had them.
    """
    stop = file_offset + len(data)
    if stop > FILE_BYTES_MAX:
        raise TooLargeError(f"a file cannot have {stop} bytes")
    if state.kernel_keeps_times:
        now_ns = 0
    _make_writable(state, file, max(file.size, stop), now_ns, keep=file.size)
    if file.buffer is not None:
        append_file(state, file.inode, [Write(file.inode, file_offset, data)], now_ns)
        if file_offset > len(file.buffer):
            file.buffer.extend(bytes(file_offset - len(file.buffer)))
        file.buffer[file_offset:stop] = data
    else:
        _write_staged(state, file, file_offset, data, now_ns)
    file.size = max(file.size, stop)
    file.changed(now_ns)


def _write_staged(
    state: ViewState, file: OpenFile, file_offset: int, data: bytes, now_ns: int
) -> None:
    """Write to the staging file, and to the journal unless the staging file alone is enough.

    It is for bytes behind the settled ones: they have nothing older under them that a power
    cut could uncover. What replaces settled bytes is journaled as data, so that replay needs no
    order between two files.
    """
    assert file.staging is not None
    journaled = file_offset < file.journaled_stop
    if journaled:
        append_file(state, file.inode, [Write(file.inode, file_offset, data)], now_ns)
        file.raise_journaled_stop(file_offset + len(data))
    file.staging.write(file_offset, data, now_ns, journaled=journaled)
    if journaled:  # only now: what a full disk refuses must not hide the settled bytes
        file.dirty.add(file_offset, file_offset + len(data))
    if file.cutter is not None:
        file.cutter.feed(file_offset, data)
        file.cutter.write_out(file.staging.write_out)
        if file.cutter.wants_adoption():
            _adopt(state, file, now_ns)


def _make_writable(state: ViewState, file: OpenFile, size: int, now_ns: int, *, keep: int) -> None:
    """Become buffered or staged, as a file of ``size`` bytes has to be.

    While an older staging file waits for a fold (replay settled it, or it is lost), another one
    must follow: to the next replay, edits without one would speak of the older.
    """
    if file.staging is not None:
        if file.untold:
            tell(state, file, now_ns)
        return
    must_stage = size > file.buffer_bytes_max or file.lost or bool(file.detached)
    if file.buffer is None:
        if must_stage:
            _stage(state, file, now_ns)
        else:
            file.become_buffered(keep)
    elif must_stage:
        _spill(state, file, now_ns)


def _stage(state: ViewState, file: OpenFile, now_ns: int) -> None:
    """Become staged; of a buffered file all bytes are staged."""
    staging = state.new_staging()
    edits: list[Edit] = [Stage(file.inode, staging.number, state.kernel_keeps_times)]
    if file.buffer is not None:  # which replay may not know, if the write was refused
        edits.insert(0, Truncate(file.inode, len(file.buffer)))
    try:
        if file.buffer:
            staging.write(0, bytes(file.buffer), now_ns, journaled=True)
        append_file(state, file.inode, edits, now_ns)
    except BaseException:
        staging.remove()
        raise
    file.attach(staging)


def _spill(state: ViewState, file: OpenFile, now_ns: int) -> None:
    """Turn a buffered file into a staged one."""
    data = bytes(file.buffer or b"")
    _stage(state, file, now_ns)
    if file.cutter is not None:
        file.cutter.feed(0, data)


def truncate(state: ViewState, file: OpenFile, size: int, now_ns: int) -> None:
    """Cut off, or extend with zeros.

    Raises:
        TooLargeError: beyond the largest file. StoreFullError, StoreError: nothing changed, unless
            the journal alone refused: what a staging file had is cut off all the same, and the
            next change, or fsync, tells of it.
    """
    if size > FILE_BYTES_MAX:
        raise TooLargeError(f"a file cannot have {size} bytes")
    if state.kernel_keeps_times:
        now_ns = 0
    _make_writable(state, file, size, now_ns, keep=min(size, file.size))
    if file.staging is None:
        append_file(state, file.inode, [Truncate(file.inode, size)], now_ns)
        file.apply_truncate(size)
    elif size < file.journaled_stop:
        _cut_settled(state, file, size, now_ns)
    else:
        file.staging.truncate(size, now_ns)
        file.apply_truncate(size)
    file.changed(now_ns)


def _cut_settled(state: ViewState, file: OpenFile, size: int, now_ns: int) -> None:
    """Cut off settled or journaled bytes.

    The journal announces it, or what it has would be back after the cut if it refuses the rest.
    Durably, where bytes go that are in the staging file alone: a power cut would do the same, with
    zeros in between.
    """
    clipped = clip(file, size, now_ns)  # first what may be refused
    append_file(state, file.inode, [Cut(file.inode, size)], now_ns)
    file.untold = [Write(file.inode, 0, b"")]  # any edit takes it back, until it is done
    try:
        if file.size > file.journaled_stop or file.dirty.within(size, file.recipe.size):
            state.sync_journal()
        cut(file, size, clipped, now_ns)
    except StoreError:
        with suppress(StoreError):  # the next change, or fsync, tries again
            tell_before_sync(state, file)
            state.sync_journal()
        raise
    file.changed(now_ns)
    tell(state, file, now_ns)


def clip(file: OpenFile, size: int, mtime_ns: int) -> tuple[int, bytes]:
    """Put what is left of a settled chunk that ``size`` lies in into the staging file.

    Returns where that is, and the bytes. Nobody reads them there yet, or they are there already.
    """
    assert file.staging is not None
    start, data = _clipped_bytes(file, size)
    if data:
        file.staging.write(start, data, mtime_ns)
    return start, data


def cut(file: OpenFile, size: int, clipped: tuple[int, bytes], mtime_ns: int) -> None:
    """Cut a staged file below what is settled or journaled; ``tell`` says then that it is done."""
    assert file.staging is not None
    start, data = clipped
    file.staging.truncate(size, mtime_ns)
    with suppress(StoreError):  # fsync will tell; until then SIGKILL is what counts
        file.staging.sync()  # or a power cut could bring back the length without the bytes
    file.apply_truncate(size)
    file.untold = [Truncate(file.inode, size)]
    if data:  # the chunk is not the file's any more, and the staging file may be cut again
        file.untold.append(Write(file.inode, start, data))
        file.note_journaled(start, size)


def tell(state: ViewState, file: OpenFile, now_ns: int) -> None:
    """Let the journal say what it must say before any other edit of the file's bytes.

    Raises:
        StoreFullError, StoreError: it does not; the next change, or fsync, tries again.
    """
    if file.untold:
        append_file(state, file.inode, file.untold, now_ns)
        file.untold = []


def _clipped_bytes(file: OpenFile, size: int) -> tuple[int, bytes]:
    """Return what is left of a settled chunk that a staged file is cut inside of."""
    if file.staging is None or size >= file.recipe.size:
        return size, b""
    index = file.recipe.index_at(size)
    start = file.recipe.bounds(index)[0]
    if file.recipe.ids[index] == HOLE or start == size:
        return size, b""
    return start, file.read(start, size)


def _adopt(state: ViewState, file: OpenFile, now_ns: int) -> None:
    """Let chunks that the store has replace their bytes in the staging file.

    Order: the chunks are held back from gc, the journal says so durably, then the blocks go.
    """
    assert file.cutter is not None
    assert file.staging is not None
    adopted = []
    found = file.cutter.take_found()
    if not _hold(state, [extent for _, extents in found for extent in extents]):
        found = [run for run in found if _hold(state, run[1])]
    for start, extents in found:
        edit = Adopt(file.inode, start, encode_extents(extents))
        append_file(state, file.inode, [edit], now_ns)
        file.apply_adopt(start, extents)
        adopted.append((start, start + sum(extent.length for extent in extents)))
    if not adopted:
        return
    try:
        state.sync_journal()
    except StoreError:
        return  # the blocks stay, and fsync will tell: the write itself is done
    for start, stop in adopted:
        file.staging.punch(start, stop)


def _hold(state: ViewState, extents: Sequence[Extent]) -> bool:
    """Hold chunks back from gc for this view; False when one is gone already."""
    return state.pin([extent.chunk_id for extent in extents if extent.chunk_id != HOLE])


def adopt_before_sync(state: ViewState, file: OpenFile) -> None:
    """Adopt what was found, if it is much: a sync need not write it to the disk then."""
    if file.cutter is None or not file.cutter.finds_much():
        return
    with suppress(StoreError):  # the staging file has it all the same
        tell_before_sync(state, file)
        _adopt(state, file, 0 if state.kernel_keeps_times else file.mtime_ns)


def tell_before_sync(state: ViewState, file: OpenFile) -> None:
    """Do as ``tell`` outside of a change."""
    tell(state, file, 0 if state.kernel_keeps_times else file.mtime_ns)
