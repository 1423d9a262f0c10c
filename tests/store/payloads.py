"""Payloads and small steps that many store tests share."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import fields

from dedupfs.format.tree import encode_extents
from dedupfs.model import HOLE, Extent, RecordId, RecordKind
from dedupfs.recipe import Piece
from dedupfs.store import Store

VIEW = b"v\0\0\0\1"
"""An owner of pins that never ends by itself."""

CHUNK = RecordKind.CHUNK


def noise(seed: object, length: int = 1000) -> bytes:
    """Return bytes that nothing compresses, the same for the same seed."""
    return random.Random(str(seed)).randbytes(length)


def put_pinned(store: Store, payloads: Iterable[bytes]) -> list[RecordId]:
    """Put chunks, commit them, and hold each by one pin of VIEW."""
    ids = [store.put(CHUNK, payload) for payload in payloads]
    pin(store, ids)
    return ids


def pin(store: Store, ids: Iterable[RecordId]) -> None:
    """Hold records by one pin of VIEW each."""
    with store.transaction() as txn:
        for record_id in ids:
            txn.pin(VIEW, record_id)


def unpin(store: Store, ids: Iterable[RecordId]) -> None:
    """Let records go again."""
    with store.transaction() as txn:
        for record_id in ids:
            txn.unpin(VIEW, record_id)


def put_page(store: Store, chunks: Iterable[tuple[RecordId, int]]) -> RecordId:
    """Put a recipe page that refers to chunks of the given lengths."""
    page = encode_extents(Extent(chunk_id, length) for chunk_id, length in chunks)
    return store.put(RecordKind.RECIPE_PAGE, page)


@contextmanager
def as_another_process(store: Store) -> Iterator[None]:
    """Do the body's steps as a process does that does not know what is pending here."""
    store.sync()
    pending = store._pending
    aside = {field.name: copy(getattr(pending, field.name)) for field in fields(pending)}
    pending.clear()
    yield
    for name, value in aside.items():
        setattr(pending, name, value)


def piece(chunk_id: RecordId, length: int, chunk_offset: int = 0) -> Piece:
    """Return a piece for ``Store.read``; where it stands in its file does not matter."""
    return Piece(chunk_id, chunk_offset, length, 0)


def hole(length: int) -> Piece:
    """Return a piece of a hole."""
    return Piece(HOLE, 0, length, 0)
