"""A native directory and a mount in which the same steps are taken, and the first difference.

Steps are operations, done by actors (actor.py), and events: what happens to the mount meanwhile,
which must change nothing that a program can see.
"""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Protocol

from dedupfs.namespace import live
from tests.fuse.harness import REPOSITORY, Daemons, Mounted
from tests.posix.comparing import Matching, difference
from tests.posix.messages import Enter, Leave, Look, Make, Run, Tolerated, WriteBack
from tests.posix.operation import Operation, Outcome
from tests.posix.picture import Picture

ANSWER_TIMEOUT_S = 240
WORK = b"up/work"
"""Directories between the compared top and the root of the work."""
_WHOLE = Picture(b"../..")


@dataclass(frozen=True)
class User:
    """Who an actor is; without a number, whoever runs the tests."""

    uid: int | None = None
    groups: tuple[int, ...] = ()


class ActorProcess:
    """The other end of an actor."""

    def __init__(self, user: User) -> None:
        arguments = ["-"] if user.uid is None else [str(user.uid), *map(str, user.groups)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.posix.actor", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
        )

    def ask(self, request: object) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(request, self._process.stdin)
        self._process.stdin.flush()
        readable, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)
        if not readable:
            raise TimeoutError(f"no answer to {request!r:.2000}")
        return pickle.load(self._process.stdout)

    def end(self) -> None:
        self._process.kill()
        with suppress(BrokenPipeError), self._process:
            pass


class Event(Protocol):
    """Something that happens to the mount; what it finds wrong is the answer."""

    def happen(self, pair: Pair) -> str | None: ...


Step = Operation | Event


@dataclass(frozen=True)
class Difference:
    """The step after which native system and mount did not agree."""

    index: int
    step: Step
    text: str

    @property
    def kind(self) -> str:
        """What a shorter list of steps must show to be taken for the same fault."""
        name = type(self.step).__name__
        return name


@dataclass
class Pair:
    """Both roots, the actors and the daemon. ``begin`` makes a fresh pair of directories."""

    daemons: Daemons
    native: Path
    users: Sequence[User] = (User(),)
    options: dict[str, object] = field(default_factory=dict)
    count: Counter[str] = field(default_factory=Counter)
    """How many steps of which kind were compared, and how many differences tolerated."""

    def __post_init__(self) -> None:
        self.actors = [ActorProcess(user) for user in self.users]
        self.mounted: Mounted = self.daemons.start(**self.options)  # type: ignore[arg-type]
        self.other: Mounted | None = None
        self.matching = Matching()
        self.top = b""
        self.native_top = b""
        self.snapshots: dict[str, Outcome] = {}
        """Native pictures of what was committed; each snapshot must stay like that."""
        self.left: dict[str, Outcome] = {}
        """Native pictures of the directories in which work went on before it moved."""
        self.entered: set[str] = set()
        """Snapshots in whose directories work went on, which this view therefore shows changed."""
        self._runs = 0

    def begin(self) -> None:
        """Start in new directories, with nothing open."""
        self._runs += 1
        self.top = self.native_top = b"run-%d" % self._runs
        self.snapshots.clear()
        self.left.clear()
        self.entered.clear()
        for top in (self.native, self.mounted.path):
            self.actors[0].ask(Make(os.fsencode(top) + b"/" + self.top, WORK))
        self.enter()

    def enter(self) -> None:
        """Let all actors work in the present directories; what an inode is numbered starts anew."""
        native = os.fsencode(self.native) + b"/" + self.native_top + b"/" + WORK
        mount = os.fsencode(self.mounted.path) + b"/" + self.top + b"/" + WORK
        for actor in self.actors:
            entered = actor.ask(Enter(native, mount))
            assert isinstance(entered, tuple)
            assert entered[0] == entered[1], entered

    def leave(self) -> None:
        """Close everything that is open in the mount."""
        for actor in self.actors:
            actor.ask(Leave())

    def restart(self, end: Callable[[Mounted], object]) -> None:
        """End the daemon in some way while everything is open or closed, and mount again.

        What the kernel keeps of writes would be lost with the mount if it were open.
        """
        if self.has_cached_writes:
            self.leave()
        end(self.mounted)
        self.leave()
        self._complain()
        self._forget(self.mounted)
        self.mounted = self.daemons.start(**self.options)  # type: ignore[arg-type]
        self.enter()

    def _complain(self) -> None:
        complaints = self.daemons.complaints()
        assert complaints == self.daemons.expected_complaints, complaints

    def _forget(self, mounted: Mounted) -> None:
        """The log of an ended daemon is written over by the next one's."""
        assert mounted.process.stdout is not None
        mounted.process.stdout.close()
        self.daemons.started.remove(mounted)

    @property
    def has_cached_writes(self) -> bool:
        return bool(self.options.get("supervisor"))

    def commit(self, name: str) -> live.Reply:
        """Freeze the present directory, as the command does."""
        self.actors[0].ask(WriteBack(os.fsencode(self.mounted.path)))
        return self.ask_daemon(live.Commit(name, self.top))

    def ask_daemon(self, request: live.Request) -> live.Reply:
        daemon = live.daemon_at(self.mounted.store, self.mounted.path)
        assert daemon is not None
        return live.ask(daemon.socket_path, request)

    def run(self, steps: Sequence[Step]) -> Difference | None:
        """Take the steps from fresh directories on, compare, and in the end compare everything."""
        self.begin()
        for index, _step, text in self._taken(steps):
            if text is not None:
                return Difference(index, steps[index], text)
        text = self.compare_all()
        return None if text is None else Difference(len(steps), _WHOLE, text)

    def _taken(self, steps: Sequence[Step]) -> list[tuple[int, Step, str | None]]:
        for who, group in groupby(enumerate(steps), lambda pair: getattr(pair[1], "who", None)):
            batch = list(group)
            if who is None:
                for index, step in batch:
                    assert not isinstance(step, Operation)
                    self.count[type(step).__name__] += 1
                    text = step.happen(self)
                    if text is not None:
                        return [(index, step, text)]
                continue
            wanted = Run([step for _, step in batch if isinstance(step, Operation)])
            outcomes = self.actors[who % len(self.actors)].ask(wanted)
            assert isinstance(outcomes, list)
            for (index, step), (native, mount) in zip(batch, outcomes, strict=True):
                text = self._compare(step, native, mount)
                if text is not None:
                    return [(index, step, text)]
        return []

    def _compare(self, step: Step, native: Outcome, mount: Outcome) -> str | None:
        self.count[type(step).__name__] += 1
        if isinstance(native, Tolerated):
            self.count[f"tolerated: {native.reason}"] += 1
            return None
        return difference(native, mount, self.matching)

    def picture(self) -> tuple[Outcome, Outcome]:
        outcomes = self.actors[0].ask(Run([_WHOLE]))
        assert isinstance(outcomes, list)
        (both,) = outcomes
        assert isinstance(both, tuple)
        return both

    def compare_all(self) -> str | None:
        """Compare the trees, and each snapshot with what it was made of, in all views."""
        native, mount = self.picture()
        text = difference(native, mount, self.matching)
        if text is not None:
            return text
        for name, left in self.left.items():
            text = self._unlike(left, self.mounted, name)
            if text is not None:
                return text
        for name, committed in self.snapshots.items():
            for mounted in (self.mounted, self.other):
                worked_in = name in self.entered or name.encode() == self.top
                if mounted is None or (mounted is self.mounted and worked_in):
                    continue
                text = self._unlike(committed, mounted, name)
                if text is not None:
                    return text
        return None

    def _unlike(self, known: Outcome, mounted: Mounted, name: str) -> str | None:
        seen = self.look(mounted, name)
        return difference(known, seen, Matching(), f"{name} in {mounted.path}")

    def look(self, mounted: Mounted, name: str) -> Outcome:
        return self.actors[0].ask(Look(os.fsencode(mounted.path / name)))

    def close(self) -> None:
        for actor in self.actors:
            with suppress(TimeoutError, BrokenPipeError, EOFError):
                actor.ask(Leave())
            actor.end()
