"""What a supervisor tells the service manager that started it: ready, reloading, stopping, alive.

Datagrams to the socket in NOTIFY_SOCKET, as libsystemd sends them; without one nothing is said. A
mount works whether or not anybody listens, so a datagram that cannot be sent is lost, and the first
one of several is logged.
Source: sd_notify(3), sd_watchdog_enabled(3), systemd.service(5) (Type=notify).
"""

import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class ServiceManager:
    """Who wants to know. ``address`` is empty when nobody does.

    ``watchdog_s``: this process is killed when it has not said that it is alive for so long; 0:
    nobody looks. ``subject``: what is mounted where, for people.
    """

    address: str = ""
    watchdog_s: float = 0.0
    subject: str = ""
    _hears: bool = True
    """Whether it was told the last thing that was said."""

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], pid: int, subject: str
    ) -> "ServiceManager":
        """Find out who started the process ``pid``, and what it is to say."""
        address = environment.get("NOTIFY_SOCKET", "")
        period_us = environment.get("WATCHDOG_USEC", "")
        is_meant = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        if not address or not is_meant or not period_us.isdecimal():
            return cls(address, subject=subject)
        return cls(address, int(period_us) / 1e6, subject)

    @property
    def patience_s(self) -> float | None:
        """How long a daemon may be silent; a new one then has the rest of the time to answer."""
        return self.watchdog_s / 4 or None

    @property
    def heartbeat_s(self) -> float:
        """How often a daemon is to say that it answers; 0: never."""
        return self.watchdog_s / 16

    def ready(self, daemon: int) -> None:
        """Say that requests are answered: for the first time, again, or after ``reloading``."""
        self._say("READY=1", f"STATUS={self.subject}, answered by process {daemon}")

    def waiting(self, daemon: int) -> None:
        """Say that callers wait for another daemon."""
        self._say(f"STATUS={self.subject}: process {daemon} ended, another one takes over")

    def reloading(self) -> None:
        """Say that another program takes over; ``ready`` follows, whether or not it does."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._say(
            "RELOADING=1",
            f"MONOTONIC_USEC={now_us}",
            f"STATUS={self.subject}: another program takes over",
        )

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._say("STOPPING=1", f"STATUS={self.subject}: ending")

    def ending_goes_on(self, seconds: float) -> None:
        """Say that the end takes so much longer, if need be: what is put away takes its time.

        The time that the manager gives in any case is not made shorter by that.
        """
        self._say(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def alive(self) -> None:
        """Say that the daemon answers."""
        if self.watchdog_s:
            self._say("WATCHDOG=1")

    def _say(self, *assignments: str) -> None:
        if not self.address:
            return
        # A name that begins with @ is one without a file: unix(7), abstract.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        text = "\n".join(assignment.replace("\n", " ") for assignment in assignments)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.setblocking(False)
            try:
                line.sendto(os.fsencode(text), address)
            except OSError as exc:
                if self._hears:
                    log.warning("the service manager was not told %s: %s", assignments[0], exc)
                self._hears = False
            else:
                self._hears = True
