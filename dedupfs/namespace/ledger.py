"""What the next daemon of a mount must know of this one: open handles, the request in hand.

It lies in memory that has no name but a descriptor (memfd), which a supervisor keeps when this
process dies; so writing it costs no system call. Knows numbers, no files and no requests' meaning.
Everything is little-endian:

    0     u64 serial of the next handle, u64 slots ever used
    16    the request in hand: u64 inode, u64 journal generation, u64 journal length in bytes,
          u64 handle that it opened (0: none), u32 process id, u32 opcode (0: no request)
    56    u32 1: the kernel keeps writes in its page cache, and their times
    64    u32 length of the kernel's INIT request, then its bytes
    3072  u64 how many requests were ever noted as done and not answered by the daemon that did
          them, then the numbers (u64) that the kernel gave the last of them: 64 places, in turn
    4096  slots of 32 bytes: u64 inode, i64 mtime in ns (0: none), u32 flags, u32 0,
          u64 handle (0: the slot is free), for a million handles
    then  of each snapshot that was entered: u32 length (0: no more), then so many bytes

A handle is ``serial << 20 | slot``: never given twice, so closing one twice is seen. What makes a
slot or the request valid is written last: a process may be killed between any two stores.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from dedupfs.errors import TooManyOpenError

_SLOT_BITS = 20
_SLOTS_MAX = 1 << _SLOT_BITS
_SLOTS_OFFSET = 4096
_COUNTERS = struct.Struct("<QQ")
_REQUEST_OFFSET = 16
_REQUEST = struct.Struct("<QQQQII")
_HANDLE_OFFSET = _REQUEST_OFFSET + 24
_OPCODE_OFFSET = _REQUEST_OFFSET + _REQUEST.size - 4
_CACHED_WRITES_OFFSET = 56
_INIT_OFFSET = 64
_DONE_OFFSET = 3072
_DONE_MAX = 64
_SLOT = struct.Struct("<QqI4x")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")
_SLOT_BYTES = _SLOT.size + _U64.size
_ENTERED_OFFSET = _SLOTS_OFFSET + _SLOTS_MAX * _SLOT_BYTES
_ENTERED_BYTES_MAX = 16 << 20
_BYTES = _ENTERED_OFFSET + _ENTERED_BYTES_MAX

DIRECTORY = 1
"""The handle is a directory's."""
PRIVILEGED = 2
"""Writes through the handle keep suid and sgid bits."""


@dataclass(frozen=True, slots=True)
class OpenHandle:
    """One handle that is open. ``mtime_ns``: of the last write that no journal tells, or 0."""

    handle: int
    inode: int
    flags: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class RequestInHand:
    """A request that was begun, and where the journal was then."""

    opcode: int
    inode: int
    pid: int
    journal_generation: int
    journal_bytes: int
    handle: int


class Ledger:
    """One mount's ledger; ``fd`` is what a successor needs to have it."""

    def __init__(self, fd: int | None = None, *, handles_max: int = _SLOTS_MAX) -> None:
        """Begin an empty one, or go on with the one behind ``fd``."""
        self._handles_max = handles_max
        if fd is None:
            fd = os.memfd_create("dedupfs-ledger")
        if os.fstat(fd).st_size < _BYTES:  # a new one, or of a program that noted no snapshots
            os.ftruncate(fd, _BYTES)
        self.fd = fd
        self._memory = mmap.mmap(fd, _BYTES)
        serial, self._slots_used = _COUNTERS.unpack_from(self._memory, 0)
        self._serial = max(int(serial), 1)
        taken = {entry.handle & (_SLOTS_MAX - 1) for entry in self.open_handles()}
        self._free = [slot for slot in range(self._slots_used) if slot not in taken]
        self._entered_stop = _ENTERED_OFFSET
        for snapshot in self.entered():
            self._entered_stop += _U32.size + len(snapshot)

    def close(self) -> None:
        """Let go of the memory."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._memory.close()
            os.close(fd)

    # --- handles ---------------------------------------------------------------------------------

    def open(self, inode: int, flags: int) -> int:
        """Return a new handle of ``inode``.

        Raises:
            TooManyOpenError: a million are open, or ``handles_max``.
        """
        if self._free:
            slot = self._free.pop()
        elif self._slots_used < self._handles_max:
            slot = self._slots_used
            self._slots_used += 1
        else:
            raise TooManyOpenError(f"{self._handles_max} files are open in this mount")
        handle = self._serial << _SLOT_BITS | slot
        self._serial += 1
        # The counters first: a handle that was given must never be given again.
        _COUNTERS.pack_into(self._memory, 0, self._serial, self._slots_used)
        _U64.pack_into(self._memory, _HANDLE_OFFSET, handle)
        offset = _SLOTS_OFFSET + slot * _SLOT_BYTES
        _SLOT.pack_into(self._memory, offset, inode, 0, flags)
        _U64.pack_into(self._memory, offset + _SLOT.size, handle)
        return handle

    def close_handle(self, handle: int) -> int:
        """Forget a handle; return the mtime that was noted, 0 also when it is not open."""
        slot = handle & (_SLOTS_MAX - 1)
        offset = _SLOTS_OFFSET + slot * _SLOT_BYTES
        _inode, mtime_ns, _flags = _SLOT.unpack_from(self._memory, offset)
        if _U64.unpack_from(self._memory, offset + _SLOT.size)[0] != handle:
            return 0
        _U64.pack_into(self._memory, offset + _SLOT.size, 0)
        self._free.append(slot)
        return int(mtime_ns)

    def note_mtime(self, handle: int, mtime_ns: int) -> None:
        """Keep the time of a write that the journal does not tell; 0: it does."""
        slot = handle & (_SLOTS_MAX - 1)
        _I64.pack_into(self._memory, _SLOTS_OFFSET + slot * _SLOT_BYTES + _U64.size, mtime_ns)

    def open_handles(self) -> Iterator[OpenHandle]:
        """Yield what is open, in no order."""
        for slot in range(self._slots_used):
            offset = _SLOTS_OFFSET + slot * _SLOT_BYTES
            (handle,) = _U64.unpack_from(self._memory, offset + _SLOT.size)
            if handle:
                inode, mtime_ns, flags = _SLOT.unpack_from(self._memory, offset)
                yield OpenHandle(handle, inode, flags, mtime_ns)

    # --- the request in hand ---------------------------------------------------------------------

    def begin(
        self, opcode: int, inode: int, pid: int, journal_generation: int, journal_bytes: int
    ) -> None:
        """Say what is about to be done, and where the journal is.

        ``pack_into`` zeroes all of it and stores one field after the other, the opcode last.
        """
        position = _REQUEST_OFFSET
        _REQUEST.pack_into(
            self._memory, position, inode, journal_generation, journal_bytes, 0, pid, opcode
        )

    def end(self) -> None:
        """The last request was answered."""
        _U32.pack_into(self._memory, _OPCODE_OFFSET, 0)

    @property
    def request(self) -> RequestInHand | None:
        """The request that was begun and perhaps not answered."""
        (opcode,) = _U32.unpack_from(self._memory, _OPCODE_OFFSET)
        if not opcode:
            return None
        inode, generation, length, handle, pid, _ = _REQUEST.unpack_from(
            self._memory, _REQUEST_OFFSET
        )
        return RequestInHand(opcode, inode, pid, generation, length, handle)

    def note_done(self, unique: int) -> None:
        """Keep that a request was done, by the kernel's number, until it is answered.

        The daemon that is to answer it may die, too. One that was answered never comes again.
        """
        (count,) = _U64.unpack_from(self._memory, _DONE_OFFSET)
        place = _DONE_OFFSET + _U64.size * (1 + count % _DONE_MAX)
        _U64.pack_into(self._memory, place, unique)
        _U64.pack_into(self._memory, _DONE_OFFSET, count + 1)

    @property
    def done(self) -> set[int]:
        """The requests that were done and perhaps not answered."""
        (count,) = _U64.unpack_from(self._memory, _DONE_OFFSET)
        kept = range(min(count, _DONE_MAX))
        return {
            _U64.unpack_from(self._memory, _DONE_OFFSET + _U64.size * (1 + place))[0]
            for place in kept
        }

    # --- snapshots -------------------------------------------------------------------------------

    def note_entered(self, snapshot: bytes) -> None:
        """Keep what a next daemon has to know of a snapshot that was entered.

        Where there is no room for it, that daemon does not find it once it is removed.
        """
        offset = self._entered_stop
        start = offset + _U32.size
        stop = start + len(snapshot)
        if stop + _U32.size > _BYTES:
            return
        # With the end of it all behind it: one that was cut short may have left more bytes.
        self._memory[start : stop + _U32.size] = snapshot + bytes(_U32.size)
        _U32.pack_into(self._memory, offset, len(snapshot))
        self._entered_stop = stop

    def entered(self) -> Iterator[bytes]:
        """Yield what was noted of each snapshot."""
        offset = _ENTERED_OFFSET
        while length := _U32.unpack_from(self._memory, offset)[0]:
            start = offset + _U32.size
            offset = start + length
            yield bytes(self._memory[start:offset])

    # --- the connection --------------------------------------------------------------------------

    @property
    def has_cached_writes(self) -> bool:
        """Whether the kernel was told that it may keep writes."""
        return bool(_U32.unpack_from(self._memory, _CACHED_WRITES_OFFSET)[0])

    @has_cached_writes.setter
    def has_cached_writes(self, cached: bool) -> None:
        _U32.pack_into(self._memory, _CACHED_WRITES_OFFSET, cached)

    @property
    def init_request(self) -> bytes:
        """The kernel's INIT request of this connection; empty when none was kept."""
        (length,) = _U32.unpack_from(self._memory, _INIT_OFFSET)
        start = _INIT_OFFSET + _U32.size
        return bytes(self._memory[start : start + length])

    @init_request.setter
    def init_request(self, request: bytes) -> None:
        start = _INIT_OFFSET + _U32.size
        assert start + len(request) <= _DONE_OFFSET
        self._memory[start : start + len(request)] = request
        _U32.pack_into(self._memory, _INIT_OFFSET, len(request))
