"""Comparing two outcomes: equal values, and inode numbers that stand for each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.posix.operation import Inode, Outcome


@dataclass
class Matching:
    """Which inode of one root is which of the other, as far as outcomes have told.

    A number never means something else later, as neither tmpfs nor a mount uses one again.
    """

    to_mount: dict[int, int] = field(default_factory=dict)
    to_native: dict[int, int] = field(default_factory=dict)

    def agree(self, native: int, mount: int) -> bool:
        return (
            self.to_mount.setdefault(native, mount) == mount
            and self.to_native.setdefault(mount, native) == native
        )


def difference(native: Outcome, mount: Outcome, matching: Matching, where: str = "") -> str | None:
    """Return where the outcomes differ and how, or None."""
    if isinstance(native, Inode) and isinstance(mount, Inode):
        if matching.agree(native.number, mount.number):
            return None
        return (
            f"{where}: native inode {native.number} was {matching.to_mount.get(native.number)}, "
            f"mount inode {mount.number} was {matching.to_native.get(mount.number)}"
        )
    if isinstance(native, dict) and isinstance(mount, dict):
        if native.keys() != mount.keys():
            native_only = sorted(native.keys() - mount.keys())
            mount_only = sorted(mount.keys() - native.keys())
            return f"{where}: only native {native_only!r}, only mount {mount_only!r}"
        pairs = [(f"{where}[{key!r}]", native[key], mount[key]) for key in native]
        return _first(pairs, matching)
    if _same_sequences(native, mount):
        together = enumerate(zip(native, mount, strict=True))  # type: ignore[call-overload]
        return _first([(f"{where}[{i}]", left, right) for i, (left, right) in together], matching)
    if native == mount and type(native) is type(mount):
        return None
    return f"{where}: native {native!r:.500}, mount {mount!r:.500}"


def _same_sequences(native: Outcome, mount: Outcome) -> bool:
    return (
        isinstance(native, tuple | list)
        and isinstance(mount, tuple | list)
        and len(native) == len(mount)
    )


def _first(pairs: list[tuple[str, Outcome, Outcome]], matching: Matching) -> str | None:
    for where, native, mount in pairs:
        found = difference(native, mount, matching, where)
        if found is not None:
            return found
    return None
