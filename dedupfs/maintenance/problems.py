"""What a walker found wrong: one value per problem, and the list that they are gathered in.

Knows no store. A problem says what is wrong, where, and what the reader can do about it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from dedupfs.model import RecordId

REINDEX = "run 'dedupfs reindex' to rebuild the index from the packs"
RESTORE = (
    "import the files that are hit again from where they are sound and run 'dedupfs check "
    "--repair', or remove what holds them"
)
LET_GO = "run 'dedupfs check --repair', which lets go of it once nothing else is damaged"
PROBLEMS_MAX = 10_000
"""How many problems are kept; a store with more is told by their count."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. ``code`` is stable: programs may tell problems apart by it."""

    code: str
    where: str
    what: str
    advice: str
    record_id: str = ""
    """The record that the problem is about, in hex; "" when it is about none."""
    uses: tuple[str, ...] = ()
    """Files that are hit, as "snapshot NAME: /PATH"."""

    def __str__(self) -> str:
        """One line for a person."""
        hit = f" (hits {', '.join(self.uses[:3])}" if self.uses else ""
        if hit:
            hit += f" and {len(self.uses) - 3} more)" if len(self.uses) > 3 else ")"
        return f"{self.where}: {self.what}{hit}; {self.advice}"


@dataclass(slots=True)
class Problems:
    """The problems found so far; never grows beyond ``PROBLEMS_MAX``."""

    found: list[Problem] = field(default_factory=list)
    left_off: int = 0

    def __len__(self) -> int:
        """Count of problems, those left off included."""
        return len(self.found) + self.left_off

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.found)

    def add(
        self, code: str, where: str, what: str, advice: str = REINDEX, record_id: bytes = b""
    ) -> None:
        """Remember one problem."""
        if len(self.found) < PROBLEMS_MAX:
            self.found.append(Problem(code, where, what, advice, record_id.hex()))
        else:
            self.left_off += 1

    def record_ids(self) -> frozenset[RecordId]:
        """Return the records that problems are about."""
        ids = (bytes.fromhex(problem.record_id) for problem in self.found if problem.record_id)
        return frozenset(RecordId(record_id) for record_id in ids)
