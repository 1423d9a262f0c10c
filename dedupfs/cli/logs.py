"""Log records of a daemon for programs: as JSON lines, or to the journal of systemd with fields.

A record's fields are what its text names as ``key=%s``, so nobody has to log twice. Knows no
daemon. Keeps no descriptor open: a daemon closes what it has inherited, and another file may
have that number then. Source: systemd's docs/JOURNAL_NATIVE_PROTOCOL.md, sd-daemon(3).
"""

import errno
import fcntl
import json
import logging
import math
import os
import re
import socket
import struct
import sys
from datetime import UTC, datetime
from pathlib import Path

from dedupfs.cli import output

FORMATS = ("text", "json", "journal")
JOURNAL = Path("/run/systemd/journal/socket")
_CONVERSION = re.compile(r"(?:(\w+)=)?%(?:%|[-#0 +]*(?:\d+|\*)?(?:\.\d+)?[a-zA-Z])")
_FIELD_BYTES_MAX = 1 << 20
"""Of one field: what is longer says no more."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_LENGTH = struct.Struct("<Q")


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the values that a record's text has as ``key=%s``, by key."""
    args = record.args
    if not isinstance(args, tuple):
        return {}
    found: dict[str, object] = {}
    position = 0
    for match in _CONVERSION.finditer(str(record.msg)):
        if match[0].endswith("%%"):
            continue
        if position >= len(args):
            return found
        if match[1]:
            found[match[1]] = args[position]
        position += 1
    return found


def _plain(value: object) -> str | int | float:
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)  # JSON knows no NaN


class JsonFormatter(logging.Formatter):
    """A record is one JSON document on one line; what is no text is escaped as ``\\udcff``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Keys of the record's own text never hide those that are always there."""
        document: dict[str, object] = {
            key: _plain(value) for key, value in fields_of(record).items()
        }
        document |= {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document)


class JournalHandler(logging.Handler):
    """Sends records to the journal; what cannot be sent goes to standard error as text."""

    def __init__(self, address: Path, otherwise: logging.Handler) -> None:
        super().__init__()
        self._address = os.fspath(address)
        self._otherwise = otherwise

    def emit(self, record: logging.LogRecord) -> None:
        """Send one datagram, without waiting: a journal that hangs must not hang a mount."""
        try:
            message = encode(record)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
                try:
                    journal.sendto(message, socket.MSG_DONTWAIT, self._address)
                except OSError as exc:
                    if exc.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                        raise
                    self._send_in_memory(journal, message)
        except OSError:
            self._otherwise.handle(record)
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)

    def _send_in_memory(self, journal: socket.socket, message: bytes) -> None:
        """Send what no datagram holds (net.core.wmem_default: 208 KiB) as a file that is sealed."""
        memory = os.memfd_create("dedupfs-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(memory, "wb", buffering=0) as file:
            file.write(message)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", memory))]
            journal.sendmsg([], passed, socket.MSG_DONTWAIT, self._address)


def encode(record: logging.LogRecord) -> bytes:
    """Return a record in the journal's native protocol."""
    text = record.getMessage()
    if record.exc_info:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    fields: dict[str, object] = {
        "MESSAGE": text,
        "PRIORITY": next((value for level, value in _PRIORITIES if record.levelno >= level), 7),
        "SYSLOG_IDENTIFIER": "dedupfs",
        "DEDUPFS_LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": record.lineno,
        "CODE_FUNC": record.funcName or "",
    }
    for key, value in fields_of(record).items():
        fields.setdefault(f"DEDUPFS_{key.upper()}"[:64], value)
    return b"".join(_field(name, value) for name, value in fields.items())


def _field(name: str, value: object) -> bytes:
    data = str(value).encode(errors="surrogateescape")[:_FIELD_BYTES_MAX]
    if b"\n" in data:
        return name.encode() + b"\n" + _LENGTH.pack(len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def is_journal(descriptor: int) -> bool:
    """Whether systemd has connected a descriptor with its journal: systemd.exec(5)."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def set_up(level: int, log_format: str, line_format: str) -> None:
    """Set up the log of this process in place of what was set up before."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if log_format == "json" else output.LineFormatter(line_format)
    )
    if log_format == "journal":
        handler = JournalHandler(JOURNAL, handler)
    logging.basicConfig(level=level, handlers=[handler], force=True)
