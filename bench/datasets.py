"""Directories to measure with, the same for the same seed and scale."""

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_NOISE_BYTES = 4 * MIB
_MEBIBYTES = range(0, _NOISE_BYTES, MIB)
_FRESH_SECONDS = 2.1
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


def tiny_tree(top: Path, files: int, per_directory: int = 100, seed: int = 1) -> Path:
    """Make many files of some bytes each: what counts of them is their number."""
    chance = random.Random(f"tiny {seed}")
    times = (_LONG_AGO_NS, _LONG_AGO_NS)
    for start in range(0, files, per_directory):
        directory = top / f"d{start // per_directory // 100}" / f"e{start // per_directory}"
        directory.mkdir(parents=True)
        for number in range(start, min(files, start + per_directory)):
            path = f"{directory}/f{number}"
            fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
            os.write(fd, b"%d %x" % (number, chance.getrandbits(64)))
            os.utime(fd, ns=times)
            os.close(fd)
    return top


def grow_old() -> None:
    """Wait until what was just made counts as old for an import: ctime cannot be dated back."""
    time.sleep(_FRESH_SECONDS)


GIT = ("git", "-c", "safe.directory=*")


def add_git(top: Path) -> None:
    """Make a directory the work tree of a repository with one commit of all its files."""
    subprocess.run([*GIT, "init", "-q", "-b", "main", str(top)], check=True)
    stream = [b"commit refs/heads/main\ncommitter bench <bench> 1700000000 +0000\ndata 0\n"]
    for path in sorted(top.rglob("*")):
        name = path.relative_to(top)
        if path.is_file() and name.parts[0] != ".git":
            data = path.read_bytes()
            stream.append(b"M 100644 inline %s\ndata %d\n" % (os.fsencode(name), len(data)))
            stream.append(data + b"\n")
    git = (*GIT, "-C", str(top))
    subprocess.run([*git, "fast-import", "--quiet"], input=b"".join(stream), check=True)
    subprocess.run([*git, "reset", "-q", "--mixed", "HEAD"], check=True)


def new_pieces(seed: str, length: int) -> list[memoryview]:
    """Return data that nobody has seen before, in memory, in pieces of 1 MiB."""
    return [memoryview(data)[at : at + MIB] for data in _noise(seed, length) for at in _MEBIBYTES]


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


def compressible_file(path: Path, length: int, seed: str, ratio: int = 8) -> Path:
    """Make a file whose chunks are all different ones and compress to a ``ratio``-th."""
    piece = 16 << 10
    chance = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(0, length, MIB):
            noise = chance.randbytes(MIB // ratio)
            parts = (noise[at : at + piece // ratio] for at in range(0, len(noise), piece // ratio))
            file.write(b"".join(part * ratio for part in parts))
    _age(path.parent)
    return path


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
