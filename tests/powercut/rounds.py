"""Round after round on one store: work, a power cut, a look at everything that came back."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from dedupfs.maintenance.check import check
from dedupfs.maintenance.reindex import reindex
from dedupfs.maintenance.scrub import scrub
from dedupfs.namespace.openfile import BUFFER_CHUNKS
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store
from tests.maintenance.samples import (
    Content,
    lose_index,
    make_directory,
    read_back,
    read_directory,
)
from tests.powercut.ledger import Op, read_ledger
from tests.powercut.machine import Image, Machine
from tests.powercut.matching import LostError, Matcher, read_mount
from tests.powercut.model import Tree
from tests.powercut.others import PREFIX

CHUNK_BYTES = 4096
WRITERS = ("a", "b")
STEPS_WITHOUT_END = 1 << 20
NUMBERS_OF_A_ROUND = 1 << 20


@dataclass
class Tally:
    """What happened, for the report."""

    cuts: int = 0
    calls: int = 0
    fsyncs: int = 0
    lost_calls: int = 0
    commits: int = 0
    imports: int = 0
    reindexed: int = 0

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in vars(self).items())


class Rounds:
    """One store through many power cuts."""

    def __init__(self, directory: Path, kind: str, seed: int, tally: Tally) -> None:
        self._rng = random.Random(seed)
        self._directory = directory
        self._tally = tally
        self._sources: dict[str, Content] = {}
        for number in range(3):
            path = make_directory(directory / f"source{number}", (seed, number))
            self._sources[path.name] = read_directory(path)
        self.machine = Machine(directory, Image(directory, kind, self._rng))
        self._trees = {name: Tree(name) for name in WRITERS}
        self._imports: dict[str, str] = {}
        self._unsure_imports: dict[str, str] = {}
        self._round = 0
        self._ledgers: dict[str, Path] = {}
        self._cut_at: dict[str, int] = {}

    def make_store(self) -> None:
        self.machine.image.mount()
        Store.create(
            self.machine.store,
            chunk_bytes_average=CHUNK_BYTES,
            pack_bytes_max=self._rng.choice([1 << 20, 16 << 20]),
            verbatim_bytes_min=128 << 10,
            compression=self._rng.choice(["auto", "none"]),
        ).close()

    # --- work ------------------------------------------------------------------------------------

    def start_programs(self, steps: int = STEPS_WITHOUT_END) -> None:
        """Start the writers and one that works beside them."""
        self._round += 1
        self._cut_at.clear()
        store = str(self.machine.store)
        for index, name in enumerate([*WRITERS, "others"]):
            ledger = self._directory / f"{name}-{self._round}.ledger"
            self._ledgers[name] = ledger
            said = {
                "store": store,
                "ledger": str(ledger),
                "seed": self._rng.getrandbits(48),
                "number": (self._round * 4 + index) * NUMBERS_OF_A_ROUND,
                "steps": steps,
            }
            if name == "others":
                sources = [str(self._directory / source) for source in self._sources]
                self.machine.start("others", **said, sources=sources)
            else:
                self.machine.start("writer", **said, name=name, view="default")

    def cut(self) -> None:
        """Work until a random call has returned, then cut the power; the image is mounted again."""
        self.machine.start_daemon()
        self.verify_views()
        self.start_programs()
        assert self.machine.wait_for(self._calls_before_the_cut()), self._logs()
        self._cut_at = {
            name: path.stat().st_size for name, path in self._ledgers.items() if path.exists()
        }
        complaints = self.machine.cut()
        assert not complaints, complaints
        self._tally.cuts += 1

    def work_until_killed(self) -> None:
        """Work until a random call has returned, then kill the daemon."""
        self.machine.start_daemon()
        self.verify_views()
        self.start_programs()
        assert self.machine.wait_for(self._calls_before_the_cut()), self._logs()
        self.machine.kill()

    def _calls_before_the_cut(self) -> int:
        return self._rng.choice([self._rng.randrange(1, 60), self._rng.randrange(60, 700)])

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in self._directory.glob("*.log"))

    def work_in_peace(self, steps: int) -> None:
        """Work, and unmount in order."""
        self.machine.start_daemon()
        self.verify_views()
        self.start_programs(steps)
        complaints = self.machine.stop()
        assert not complaints, complaints

    # --- looking at what is left -----------------------------------------------------------------

    def lose_the_index(self) -> None:
        lose_index(self.machine.store)
        report = reindex(self.machine.store)
        assert report.ok, report
        self._tally.reindexed += 1

    def verify_store(self) -> None:
        """The store opens by itself and is sound."""
        with Store.open(self.machine.store) as store:
            report = check(store)
            assert report.ok, [str(problem) for problem in report.problems]
            scrubbed = scrub(store, from_disk=False)
            assert scrubbed.ok, scrubbed
            self._note_imports()
            self._verify_snapshots(store)

    def _ops(self, name: str) -> list[Op]:
        ledger = self._ledgers.get(name)
        if ledger is None:
            return []
        ops = read_ledger(ledger, self._cut_at.get(name))
        failed = [op for op in ops if not op.done and not op.unsure and not overtaken(op)]
        assert not failed, f"{[str(op) for op in failed]}\n{self._logs()}"
        return ops

    def _note_imports(self) -> None:
        self._unsure_imports = {}
        for op in self._ops("others"):
            name = op.arguments.get("name", "")
            if op.name == "import":
                self._tally.imports += op.promised
                known = self._imports if op.promised else self._unsure_imports
                known[name] = op.arguments["source"]
            elif op.name == "remove":
                source = self._imports.pop(name)
                if not op.promised:
                    self._unsure_imports[name] = source
        self._ledgers.pop("others", None)

    def _verify_snapshots(self, store: Store) -> None:
        catalog = {info.name for info in SnapshotCatalog(store).list()}
        imported = {name for name in catalog if name.startswith(PREFIX)}
        assert self._imports.keys() <= imported, f"lost {self._imports.keys() - imported}"
        back = imported - self._imports.keys() - self._unsure_imports.keys()
        assert not back, f"came back: {back}"
        for name in imported:
            source = {**self._unsure_imports, **self._imports}[name]
            assert read_back(store, name) == self._sources[source], name
            self._imports[name] = source
        for name, tree in self._trees.items():
            matcher = self._matcher(name)
            for snapshot, frozen in matcher.snapshots().items():
                if snapshot in catalog:
                    found = read_back(store, snapshot)
                    assert found == frozen, differences(found, frozen)
            assert tree.writer == name

    def _matcher(self, name: str) -> Matcher:
        return Matcher(self._trees[name], self._ops(name), BUFFER_CHUNKS * CHUNK_BYTES)

    def verify_views(self) -> None:
        """Everything that a writer was promised is in the mount."""
        mounted = self.machine.mounted
        assert mounted is not None
        with Store.open(self.machine.store) as store:
            catalog = {info.name for info in SnapshotCatalog(store).list()}
        for name in WRITERS:
            ops = self._ops(name)
            matcher = self._matcher(name)
            shown = read_mount(mounted.path, name)
            try:
                self._trees[name] = matcher.match(shown, catalog)
            except LostError as exc:
                exc.add_note(f"round {self._round} in {self._directory}")
                raise
            self._tally.calls += len(ops)
            self._tally.fsyncs += sum(op.name in ("fsync", "fsyncdir") for op in ops)
            self._tally.commits += sum(op.name == "commit" for op in ops)
            self._tally.lost_calls += matcher.lost_calls
            self._ledgers.pop(name, None)


def overtaken(op: Op) -> bool:
    """Whether an import gave up since gc was freeing all the while what it had found."""
    return op.name == "import" and (op.error or "").startswith("MissingRecordError")


def differences(found: Content, frozen: Content) -> str:
    """Say where two listings differ."""
    lines = [f"{path}: only in one" for path in found.keys() ^ frozen.keys()]
    lines += [
        f"{path}: {found[path][0]:o} {len(found[path][1])} bytes, not {mode:o} {len(data)}"
        for path, (mode, data) in frozen.items()
        if path in found and found[path] != (mode, data)
    ]
    return "\n".join(lines)
