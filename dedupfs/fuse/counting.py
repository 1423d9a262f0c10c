"""What a daemon has done so far, put together when somebody asks for it.

The numbers are plain integers where things happen (``Operations``, the view, the store): no lock,
and nothing is computed before it is asked for. Knows no request. What they are called and what they
mean: docs/cli.md, "top".
"""

import errno
import resource
import time
from pathlib import Path

from dedupfs.fuse.operations import Operations
from dedupfs.fuse.reply import Tally
from dedupfs.namespace import live
from dedupfs.namespace.view import View

_STATM = Path("/proc/self/statm")


class Counting:
    """Tells what one mount has done since this process serves it."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._since_ns = time.time_ns()
        self.operations: Operations | None = None
        """Who counts requests; there is nobody before the mount is made."""

    def tell(self) -> live.Counted:
        """Return all counters and gauges as they are now."""
        operations = self.operations
        tally = operations or Tally(())
        used = resource.getrusage(resource.RUSAGE_SELF)
        return live.Counted(
            since_ns=self._since_ns,
            requests=dict(tally.requests),
            totals={
                **tally.totals,
                **self._view.totals(),
                "cpu_us": int((used.ru_utime + used.ru_stime) * 1e6),
            },
            gauges={**self._view.gauges(), "memory_bytes": _memory_bytes()},
            errors={
                errno.errorcode.get(code, str(code)): count for code, count in tally.errors.items()
            },
            timed={operation: cells.copy() for operation, cells in tally.timed.items()},
        )


def _memory_bytes() -> int:
    """Return what of this process is in memory: proc(5), statm."""
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()
