"""A process that makes system calls as whoever it is told to be: script.py's other end.

    python -m tests.calls.actor [UID]        with UID it becomes that user for good

One JSON list [directory, who, word...] a line comes in, the answer goes out as one line: the name
of an errno, or the value, or 0. The first word is a method of ``Actor``.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import stat
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.fuse.harness import become

ERRNO_NAMES = dict(errno.errorcode) | {errno.EOPNOTSUPP: "EOPNOTSUPP"}  # else ENOTSUP
IDS = {"root": 0, "alice": 65534, "bob": 54002, "staff": 54010, "crew": 54011}
"""Users, each with the group of the same number, and groups. Alice is in every passwd as nobody."""

CLOCK_REALTIME_COARSE = 5  # linux/time.h; file systems take their times from it
MAPPED_NOWHERE = 1
AT_FDCWD = -100
RENAME_FLAGS = {"noreplace": 1, "exchange": 2, "whiteout": 4, "both": 3}
FALLOCATE = {"keep": 1, "punch": 3}  # linux/falloc.h
SEEKS = {"data": os.SEEK_DATA, "hole": os.SEEK_HOLE}
DEVICE = os.makedev(1, 3)  # /dev/null
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
KINDS = {
    stat.S_IFREG: "regular",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}
ACL_TAGS = {"u": (1, 2), "g": (4, 8), "m": (16, 16), "o": (32, 32)}  # without and with an id
NO_ID = 0xFFFFFFFF

libc = ctypes.CDLL(None, use_errno=True)


class Actor:
    """The calls of a table. Arguments are words; a path may be a descriptor's ``@name``."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.marks: dict[str, os.stat_result] = {}
        self.running: list[subprocess.Popen[bytes]] = []
        self.directory = ""

    # --- whose turn it is ------------------------------------------------------------------------

    def answer(self, directory: str, who: str, words: list[str]) -> str:
        if directory != self.directory:
            self.forget()
            os.chdir(directory)
            self.directory = directory
        try:
            self.turn_into(who)
            found = getattr(self, words[0])(*words[1:])
        except OSError as exc:
            return ERRNO_NAMES.get(exc.errno or 0, "none")
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as exc:
            # A mistake in a table, to be shown there.
            return f"{type(exc).__name__}: {exc}"
        finally:
            if who:
                self.turn_into("root")
        return "0" if found is None else str(found)

    def turn_into(self, who: str) -> None:
        """``alice``, ``alice/staff`` with another group, ``alice+staff`` with one more."""
        if not who:
            return
        os.seteuid(0)
        name, *more = who.replace("+", " +").replace("/", " /").split()
        extra = [IDS[word[1:]] for word in more if word[0] == "+"]
        group = [IDS[word[1:]] for word in more if word[0] == "/"]
        os.setgroups(extra)
        os.setegid(group[0] if group else IDS[name])
        os.seteuid(IDS[name])

    def forget(self) -> None:
        """Leave nothing of a case behind."""
        os.chdir("/")
        os.umask(0o022)
        for fd in self.files.values():
            with suppress(OSError):
                os.close(fd)
        for process in self.running:
            self._end(process)
        self.files, self.marks, self.running = {}, {}, []

    def at(self, word: str) -> Any:
        """Return the descriptor or the path that ``word`` means."""
        return self.files[word[1:]] if word.startswith("@") else "" if word == "''" else word

    # --- making names ----------------------------------------------------------------------------

    def create(self, path: str, mode: str = "644") -> None:
        os.close(os.open(self.at(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, int(mode, 8)))

    def make(self, kind: str, path: str, mode: str = "644") -> None:
        """Make an object of a kind."""
        if kind == "symlink":
            os.symlink("nowhere", path)
        elif kind == "dir":
            os.mkdir(path, int(mode, 8))
        else:
            wanted = next(bits for bits, name in KINDS.items() if name == kind)
            os.mknod(path, wanted | int(mode, 8), DEVICE if kind in ("char", "block") else 0)

    def mkdir(self, path: str, mode: str = "755") -> None:
        os.mkdir(self.at(path), int(mode, 8))

    def mkfifo(self, path: str, mode: str = "644") -> None:
        os.mkfifo(self.at(path), int(mode, 8))

    def mknod(self, path: str, kind: str, mode: str = "644") -> None:
        self.make(kind, self.at(path), mode)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(self.at(target), self.at(path))

    def link(self, path: str, new: str) -> None:
        os.link(self.at(path), self.at(new), follow_symlinks=False)

    def links(self, path: str, count: str, new: str) -> None:
        """Give a file that many more names."""
        for index in range(int(count)):
            os.link(path, f"{new}.{index}")

    def linkto(self, path: str, new: str) -> None:
        """linkat(2) with AT_SYMLINK_FOLLOW, which is how a descriptor gets a name."""
        where = f"/proc/self/fd/{self.at(path)}" if path.startswith("@") else path
        done(libc.linkat(AT_FDCWD, where.encode(), AT_FDCWD, new.encode(), 0x400))

    def bind(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path)

    # --- taking names ----------------------------------------------------------------------------

    def unlink(self, path: str) -> None:
        os.unlink(self.at(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self.at(path))

    def rename(self, old: str, new: str) -> None:
        os.rename(self.at(old), self.at(new))

    def renameat2(self, old: str, new: str, flags: str) -> None:
        number = RENAME_FLAGS[flags]
        done(libc.renameat2(AT_FDCWD, old.encode(), AT_FDCWD, new.encode(), number))

    # --- attributes ------------------------------------------------------------------------------

    def chmod(self, path: str, mode: str) -> None:
        os.chmod(self.at(path), int(mode, 8))

    def chown(self, path: str, user: str, group: str) -> None:
        os.chown(self.at(path), number(user), number(group))

    def lchown(self, path: str, user: str, group: str) -> None:
        os.lchown(path, number(user), number(group))

    def truncate(self, path: str, size: str) -> None:
        os.truncate(self.at(path), int(size))

    def utimens(self, path: str, atime: str, mtime: str) -> None:
        self._utimens(path, atime, mtime, 0)

    def lutimens(self, path: str, atime: str, mtime: str) -> None:
        self._utimens(path, atime, mtime, 0x100)

    def _utimens(self, path: str, atime: str, mtime: str, flags: int) -> None:
        """utimensat(2): ``now``, ``omit``, or SECONDS.NANOSECONDS."""
        times = b"".join(struct.pack("@ll", *timespec(word)) for word in (atime, mtime))
        if path.startswith("@"):
            done(libc.futimens(self.at(path), times))
        else:
            done(libc.utimensat(AT_FDCWD, str(self.at(path)).encode(), times, flags))

    def umask(self, mask: str) -> None:
        os.umask(int(mask, 8))

    def setxattr(self, path: str, name: str, value: str) -> None:
        os.setxattr(self.at(path), name, value.encode())

    def getxattr(self, path: str, name: str) -> str:
        return os.getxattr(self.at(path), name).decode()

    def setcap(self, path: str) -> None:
        os.setxattr(path, "security.capability", CAPABILITY)

    def hascap(self, path: str) -> str:
        return "yes" if "security.capability" in os.listxattr(path) else "no"

    def setfacl(self, path: str, kind: str, acl: str) -> None:
        """Set an ACL from text such as ``u::rwx,u:bob:r--,g::r-x,m::rwx,o::---``."""
        packed = struct.pack("<I", 2)
        for entry in acl.split(","):
            tag, name, letters = entry.split(":")
            bits = sum(4 >> place for place, letter in enumerate(letters) if letter != "-")
            entry_id = IDS[name] if name else NO_ID
            packed += struct.pack("<HHI", ACL_TAGS[tag][bool(name)], bits, entry_id)
        os.setxattr(path, f"system.posix_acl_{kind}", packed)

    def getfacl(self, path: str, kind: str) -> str:
        packed = os.getxattr(path, f"system.posix_acl_{kind}")
        names = {entry_id: name for name, entry_id in IDS.items()} | {NO_ID: ""}
        tags = {tag: letter for letter, both in ACL_TAGS.items() for tag in both}
        return ",".join(
            f"{tags[tag]}:{names[entry_id]}:{stat.filemode(bits)[7:]}"
            for tag, bits, entry_id in struct.iter_unpack("<HHI", packed[4:])
        )

    def rmacl(self, path: str, kind: str) -> None:
        os.removexattr(path, f"system.posix_acl_{kind}")

    # --- files -----------------------------------------------------------------------------------

    def open(self, path: str, flags: str, *more: str) -> None:
        """``open PATH O_A|O_B [MODE] [as NAME]``."""
        bits = 0
        for flag in flags.split("|"):
            bits |= getattr(os, flag)
        mode = int(more[0], 8) if more and more[0] != "as" else 0
        fd = os.open(self.at(path), bits, mode)
        if "as" in more:
            self.files[more[-1]] = fd
        else:
            os.close(fd)

    def close(self, name: str) -> None:
        os.close(self.files.pop(name[1:]))

    def write(self, name: str, text: str, offset: str = "") -> None:
        data = str(self.at(text)).encode()
        fd = self.at(name)
        count = os.pwrite(fd, data, int(offset)) if offset else os.write(fd, data)
        assert count == len(data)

    def scribble(self, name: str, text: str) -> None:
        """Write through a shared mapping."""
        with mmap.mmap(self.at(name), 0) as mapped:
            mapped[: len(text)] = text.encode()
            mapped.flush()

    def copyrange(self, source: str, target: str, count: str) -> int:
        return os.copy_file_range(self.at(source), self.at(target), int(count))

    def read(self, name: str, count: str, offset: str = "0") -> str:
        data = os.pread(self.at(name), int(count), int(offset))
        return data.replace(b"\0", b".").decode() or "-"

    def seek(self, name: str, offset: str, whence: str) -> int:
        return os.lseek(self.at(name), int(offset), SEEKS[whence])

    def fsync(self, name: str) -> None:
        os.fsync(self.at(name))

    def fallocate(self, name: str, mode: str, offset: str, length: str) -> None:
        """fallocate(2) itself."""
        bits = FALLOCATE.get(mode, 0)
        done(
            libc.fallocate(
                self.at(name), bits, ctypes.c_int64(int(offset)), ctypes.c_int64(int(length))
            )
        )

    def reserve(self, name: str, offset: str, length: str) -> None:
        """posix_fallocate(3), which writes zeros where fallocate(2) is missing."""
        os.posix_fallocate(self.at(name), int(offset), int(length))

    def put(self, path: str, text: str) -> None:
        """Make a file with these bytes, or replace the bytes that it has."""
        Path(path).write_text(text)

    def cat(self, path: str) -> str:
        return Path(path).read_text()

    # --- looking ---------------------------------------------------------------------------------

    def stat(self, path: str, fields: str) -> str:
        return shown(os.stat(self.at(path)), fields)

    def lstat(self, path: str, fields: str) -> str:
        return shown(os.lstat(path), fields)

    def access(self, path: str, letters: str) -> str:
        wanted = sum({"r": os.R_OK, "w": os.W_OK, "x": os.X_OK, "f": 0}[i] for i in letters)
        return "yes" if os.access(self.at(path), wanted, effective_ids=True) else "no"

    def readlink(self, path: str) -> str:
        return str(os.readlink(self.at(path)))

    def ls(self, path: str) -> str:
        return ",".join(sorted(os.listdir(self.at(path)))) or "-"

    def chdir(self, path: str) -> None:
        os.chdir(path)

    def statvfs(self, path: str, fields: str) -> str:
        found = os.statvfs(self.at(path))
        assert 0 < found.f_bavail <= found.f_bfree <= found.f_blocks
        assert found.f_ffree <= found.f_files
        return ",".join(str(getattr(found, f"f_{field}")) for field in fields.split(","))

    def mark(self, *paths: str) -> None:
        """Remember the times of objects; whatever changes them from now on shows."""
        for path in paths:
            self.marks[path] = os.stat(self.at(path), follow_symlinks=path.startswith("@"))
        now_ns = time.time_ns()
        while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= now_ns:  # a tick is 1 to 10 ms
            pass

    def moved(self, path: str, since: str = "") -> str:
        """Which of atime, mtime, ctime went forward since ``mark``: ``amc``, or ``-`` for none."""
        before = self.marks[since or path]
        after = os.stat(self.at(path), follow_symlinks=path.startswith("@"))
        letters = [
            letter
            for letter in "amc"
            if getattr(after, f"st_{letter}time_ns") > getattr(before, f"st_{letter}time_ns")
        ]
        changed = [
            letter
            for letter in "amc"
            if getattr(after, f"st_{letter}time_ns") != getattr(before, f"st_{letter}time_ns")
        ]
        assert letters == changed, "a time went back"
        return "".join(letters) or "-"

    # --- programs and bad pointers ---------------------------------------------------------------

    def install(self, path: str) -> None:
        """Put a program there that runs until its input ends."""
        Path(path).write_bytes(Path("/bin/cat").read_bytes())
        os.chmod(path, 0o755)

    def execute(self, path: str) -> None:
        program = os.path.join(os.getcwd(), path)
        self.running.append(
            subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        )

    def finish(self) -> None:
        self._end(self.running.pop())

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0

    def fault(self, call: str, *words: str) -> None:
        """Make a call of libc with ``BAD`` for a pointer to nowhere, numbers, and paths."""
        nowhere = ctypes.c_void_p(MAPPED_NOWHERE)
        arguments: list[Any] = []
        for word in words:
            if word == "BAD":
                arguments.append(nowhere)
            else:
                arguments.append(int(word) if word.lstrip("-").isdigit() else word.encode())
        done(getattr(libc, call)(*arguments))


def done(result: int) -> None:
    """Raise what a call of libc left in errno."""
    if result == -1:
        raise OSError(ctypes.get_errno(), "")


def number(word: str) -> int:
    return IDS[word] if word in IDS else int(word)


def timespec(word: str) -> tuple[int, int]:
    special = {"now": (0, (1 << 30) - 1), "omit": (0, (1 << 30) - 2)}  # UTIME_NOW, UTIME_OMIT
    if word in special:
        return special[word]
    seconds, _, nanoseconds = word.partition(".")
    return int(seconds), int(nanoseconds.ljust(9, "0"))


def shown(found: os.stat_result, fields: str) -> str:
    """Return fields of a stat as they stand in a table."""
    names = {number: name for name, number in list(IDS.items())[::-1]}
    values = {
        "type": KINDS[stat.S_IFMT(found.st_mode)],
        "mode": f"{stat.S_IMODE(found.st_mode):04o}",
        "user": names.get(found.st_uid, str(found.st_uid)),
        "group": names.get(found.st_gid, str(found.st_gid)),
        "size": found.st_size,
        "nlink": found.st_nlink,
        "ino": found.st_ino,
        "rdev": f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}",
        "atime": f"{found.st_atime_ns // 10**9}.{found.st_atime_ns % 10**9:09d}",
        "mtime": f"{found.st_mtime_ns // 10**9}.{found.st_mtime_ns % 10**9:09d}",
    }
    return ",".join(str(values[field]) for field in fields.split(","))


def main() -> None:
    if len(sys.argv) > 1:
        become(int(sys.argv[1]))
    actor = Actor()
    for line in sys.stdin:
        directory, who, *words = json.loads(line)
        sys.stdout.write(actor.answer(directory, who, words) + "\n")
        sys.stdout.flush()
    actor.forget()


if __name__ == "__main__":
    main()
