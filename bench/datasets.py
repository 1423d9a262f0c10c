"""Directories to measure with, the same for the same seed and scale."""

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_NOISE_BYTES = 4 * MIB
_LONG_AGO_NS = 1_700_000_000 * 10**9


@dataclass(frozen=True)
class Scale:
    """How much of everything there is; 1.0 is what README.md tells of."""

    factor: float

    def count(self, full: int) -> int:
        return max(1, round(full * self.factor))

    def bytes(self, full: int) -> int:
        return max(MIB, round(full * self.factor) // 4096 * 4096)


def _words(chance: random.Random) -> list[str]:
    letters = "etaoinshrdlucmfwypvbgk"
    return ["".join(chance.choices(letters, k=chance.randint(2, 10))) for _ in range(2000)]


def _text(chance: random.Random, words: list[str], length: int) -> bytes:
    lines = []
    made = 0
    while made < length:
        line = " " * chance.choice((0, 4, 8)) + " ".join(chance.choices(words, k=7))
        lines.append(line)
        made += len(line) + 1
    return "\n".join(lines).encode()[:length]


def small_tree(top: Path, files: int, seed: int = 1) -> Path:
    """Make a directory like a source tree: many small text files, some small binary ones."""
    chance = random.Random(f"tree {seed}")
    words = _words(chance)
    body = _text(chance, words, 2 * MIB)
    directories = [top]
    for number in range(max(1, files // 12)):
        parent = chance.choice(directories[-40:])
        directories.append(parent / f"part{number}")
        directories[-1].mkdir(parents=True)
    for number in range(files):
        directory = chance.choice(directories)
        length = min(400_000, int(chance.lognormvariate(8.0, 1.4)) + 1)
        if number % 10 == 0:
            data = chance.randbytes(length)
        else:
            start = chance.randrange(len(body) - 1)
            head = f"# {number} {chance.random()}\n".encode()
            data = (head + (body[start:] + body)[:length])[:length]
        (directory / f"file{number}.txt").write_bytes(data)
    _age(top)
    return top


def _age(top: Path) -> None:
    """Let all files be old: one that was just written is not trusted to be unchanged."""
    for path in [*top.rglob("*"), top]:
        os.utime(path, ns=(_LONG_AGO_NS, _LONG_AGO_NS))


def change_files(top: Path, count: int, seed: int) -> int:
    """Write into ``count`` files, as an editor does; return the bytes of the files now."""
    chance = random.Random(f"change {seed}")
    paths = sorted(path for path in top.rglob("*") if path.is_file())
    total = 0
    for path in chance.sample(paths, min(count, len(paths))):
        data = bytearray(path.read_bytes())
        at = chance.randrange(len(data) + 1)
        data[at:at] = f"edit {seed} {chance.random()}\n".encode()
        path.write_bytes(data)
        total += len(data)
    return total


@dataclass(frozen=True)
class Family:
    """Checkpoints of one training run, and how many bytes of them all are different ones."""

    paths: list[Path]
    logical_bytes: int
    new_bytes: int


def checkpoint_family(
    top: Path, *, count: int, file_bytes: int, frozen: float = 0.3, seed: int = 1
) -> Family:
    """Make ``count`` files in the form of safetensors.

    ``frozen`` of the tensors never change. The header has another length in each file, as metadata
    makes it, so that every tensor lies some bytes further on than in the file before.
    """
    top.mkdir(parents=True)
    tensors = 64
    size = file_bytes // tensors // 2 * 2
    frozen_count = round(tensors * frozen)
    kept = set(random.Random(f"frozen {seed}").sample(range(tensors), frozen_count))
    paths = []
    for step in range(count):
        path = top / f"step-{step:04d}.safetensors"
        with path.open("wb") as file:
            file.write(_header(step, tensors, size))
            for tensor in range(tensors):
                version = 0 if tensor in kept else step
                for part in _noise(f"tensor {seed} {tensor} {version}", size):
                    file.write(part)
        paths.append(path)
    _age(top)
    logical = sum(path.stat().st_size for path in paths)
    new = logical - (count - 1) * frozen_count * size
    return Family(paths, logical, new)


def _header(step: int, tensors: int, size: int) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"step": str(step), "note": "x" * (step * 3 + 1)}}
    for tensor in range(tensors):
        entries[f"layers.{tensor}.weight"] = {
            "dtype": "BF16",
            "shape": [size // 2],
            "data_offsets": [tensor * size, (tensor + 1) * size],
        }
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def _noise(seed: str, length: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    for start in range(0, length, _NOISE_BYTES):
        yield chance.randbytes(min(_NOISE_BYTES, length - start))


def noise_file(path: Path, length: int, seed: str = "noise") -> Path:
    """Make one file that nothing compresses."""
    with path.open("wb") as file:
        for part in _noise(seed, length):
            file.write(part)
    _age(path.parent)
    return path
