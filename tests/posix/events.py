"""What happens to a mount between operations: each must leave everything as it was."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dedupfs.namespace import live
from tests.fuse.harness import Mounted
from tests.posix.comparing import Matching
from tests.posix.operation import Failed
from tests.posix.pair import Pair


@dataclass(frozen=True)
class Compare:
    """Nothing happens: the trees are compared."""

    def happen(self, pair: Pair) -> str | None:
        return pair.compare_all()


@dataclass(frozen=True)
class Fold:
    """The journal becomes trees while files are open."""

    def happen(self, pair: Pair) -> str | None:
        assert pair.ask_daemon(live.Fold()) == live.Done()
        return None


@dataclass(frozen=True)
class Commit:
    """What is there becomes a snapshot, which must stay as it was from then on."""

    name: str

    def happen(self, pair: Pair) -> str | None:
        name = f"{os.fsdecode(pair.native_top)}-{self.name}"
        native, _mount = pair.picture()
        reply = pair.commit(name)
        assert isinstance(reply, live.Committed), reply
        if not isinstance(native, Failed):  # an ordinary user may have shut himself out
            pair.snapshots[name] = native
        return None


@dataclass(frozen=True)
class MoveToSnapshot:
    """What is there becomes a snapshot, and work goes on in it, copying when it writes."""

    name: str

    def happen(self, pair: Pair) -> str | None:
        Commit(self.name).happen(pair)
        native, _mount = pair.picture()
        if not isinstance(native, Failed):
            pair.left[os.fsdecode(pair.top)] = native
        pair.leave()
        pair.entered.add(os.fsdecode(pair.top))
        pair.top = f"{os.fsdecode(pair.native_top)}-{self.name}".encode()
        pair.matching = Matching()
        pair.enter()
        return None


@dataclass(frozen=True)
class Remount:
    """The mount ends in order, with nothing open, and is made again."""

    def happen(self, pair: Pair) -> str | None:
        pair.leave()
        pair.restart(Mounted.end)
        return pair.compare_all()


@dataclass(frozen=True)
class Kill:
    """SIGKILL takes the daemon while files are open; it is mounted again."""

    def happen(self, pair: Pair) -> str | None:
        pair.restart(Mounted.kill)
        return pair.compare_all()


@dataclass(frozen=True)
class OtherView:
    """A second view of the store is mounted, in which nobody changes anything."""

    def happen(self, pair: Pair) -> str | None:
        if pair.other is None:
            options = {**pair.options, "view": "other"}
            pair.other = pair.daemons.start("other", **options)  # type: ignore[arg-type]
        return pair.compare_all()
