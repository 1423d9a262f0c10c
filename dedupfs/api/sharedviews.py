"""A view that several file systems of fsspec share: it makes one for each thread and option.

Counted by store and name; the last one closes it. Knows nothing of fsspec.
"""

import os
import threading
from dataclasses import dataclass

from dedupfs.api.store import Store
from dedupfs.api.view import View


@dataclass(slots=True)
class _Shared:
    view: View
    users: int


_lock = threading.Lock()
_shared: dict[tuple[str, str], _Shared] = {}


def open_shared_view(store: Store, name: str) -> View:
    """Open the view ``name``, or share what other file systems of this process have open."""
    key = str(store.path), name
    with _lock:
        found = _shared.get(key)
        if found is None or not found.view.is_open:
            found = _shared[key] = _Shared(store.view(name), 0)
            found.view._warns = False  # fsspec closes nothing
        found.users += 1
        return found.view


def close_shared_view(store: Store, view: View) -> None:
    """One user less; the last one closes it."""
    key = str(store.path), view.name
    with _lock:
        found = _shared.get(key)
        if found is None or found.view is not view:
            return
        found.users -= 1
        if found.users <= 0:
            del _shared[key]
            view.close()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603  another thread of the parent may have had it
    _lock = threading.Lock()
    _shared.clear()  # they are the parent's


os.register_at_fork(after_in_child=_after_fork)
