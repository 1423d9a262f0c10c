"""What a volume is: its name and its options, from the words of ``volume create -o``. Pure.

Specified in docs/cli.md, "volume-plugin".
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from dedupfs.errors import UsageError
from dedupfs.namespace.rows import check_name

KNOWN = ("context", "ephemeral", "limit", "ro", "snapshot", "store", "view")
VALUE_CHARACTERS_MAX = 4096
LIMIT_BYTES_MAX = 1 << 62
_LABEL = re.compile(r"[A-Za-z0-9_.:,-]{1,4096}")  # user:role:type:level; it goes between quotes
_YES = frozenset({"", "1", "true", "yes"})  # ``-o ro`` comes as ""
_NO = frozenset({"0", "false", "no"})

ParseSize = Callable[[str], int]


class Options(msgspec.Struct, frozen=True):
    """What a volume shows. ``view`` is empty for ephemeral and read-only volumes.

    ``is_own``: the view goes with the volume, for it was not named by ``view=``.
    """

    store: str
    view: str = ""
    is_own: bool = False
    snapshot: str = ""
    ephemeral: bool = False
    read_only: bool = False
    limit_bytes: int | None = None
    context: str = ""
    """SELinux's label of all files; none: what the policy says of FUSE."""


def parse(
    name: str, words: Mapping[str, str], stores: Sequence[Path], parse_size: ParseSize
) -> Options:
    """Return what the volume ``name`` with these options is to be.

    Raises:
        UsageError: a name or an option that is none, or options that exclude each other.
    """
    check_name(name, "volume")
    for key, value in words.items():
        if key not in KNOWN:
            raise UsageError(f"no option {key[:64]!r}: there is {', '.join(KNOWN)}")
        if len(value) > VALUE_CHARACTERS_MAX or not value.isprintable():
            raise UsageError(f"the value of {key}= is too long, or not printable")
    ephemeral, read_only = (_flag(words, key) for key in ("ephemeral", "ro"))
    view, snapshot, limit = (words.get(key) for key in ("view", "snapshot", "limit"))
    context = words.get("context", "")
    if context and _LABEL.fullmatch(context) is None:
        raise UsageError(f"context={context[:64]!r} is no label of SELinux")
    if (view is not None) + ephemeral + read_only > 1:
        raise UsageError("view=, ephemeral and ro exclude each other")
    if limit is not None and read_only:
        raise UsageError("limit= is for what is written: not with ro")
    if view is not None:
        check_name(view, "view")
    if snapshot is not None:
        check_name(snapshot)
    without_view = ephemeral or read_only
    return Options(
        os.fspath(_store(words.get("store"), stores)),
        view="" if without_view else view or name,
        is_own=not without_view and view is None,
        snapshot=snapshot or "",
        ephemeral=ephemeral,
        read_only=read_only,
        limit_bytes=None if limit is None else _limit(limit, parse_size),
        context=context,
    )


def _flag(words: Mapping[str, str], key: str) -> bool:
    value = words.get(key, "no").lower()
    if value not in _YES | _NO:
        raise UsageError(f"{key}={value[:64]!r}: say true or false")
    return value in _YES


def _limit(text: str, parse_size: ParseSize) -> int:
    limit_bytes = parse_size(text)
    if limit_bytes > LIMIT_BYTES_MAX:
        raise UsageError(f"limit={text[:64]!r} is more than any disk has")
    return limit_bytes


def _store(wanted: str | None, stores: Sequence[Path]) -> Path:
    """Pick one of the plugin's stores, by its path or its last component."""
    if wanted is None:
        if len(stores) == 1:
            return stores[0]
        raise UsageError(f"say store=, one of {_listed(stores)}")
    found = [store for store in stores if wanted in (os.fspath(store), store.name)]
    if len(found) != 1:
        raise UsageError(f"store={wanted[:64]!r} is not one of {_listed(stores)}")
    return found[0]


def _listed(stores: Sequence[Path]) -> str:
    return ", ".join(map(os.fspath, stores))
