"""What pip installs: everything that belongs there, nothing else, and it works with nothing else.

Method: hatchling builds wheel and sdist of this checkout, as pip has it do. The wheel is put into a
new virtual environment beside what pyproject.toml says that it needs, and links to that are all
that this environment shares with the one that runs the tests: no pyfuse3, no trio, no extras. The
long run has pip do it all by itself, with what it finds on PyPI.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from dedupfs.cli.app import COMMANDS

pytest.importorskip("hatchling")
from packaging.metadata import Metadata
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
LIMIT_S = 300
DATA = "dedupfs-0.1.0.data/data/"
PAGES = {f"share/man/man1/dedupfs-{name}.1" for name in COMMANDS} | {
    "share/man/man1/dedupfs.1",
    "share/man/man8/mount.dedupfs.8",
}
SCRIPTS = {
    "share/bash-completion/completions/dedupfs",
    "share/fish/vendor_completions.d/dedupfs.fish",
    "share/zsh/site-functions/_dedupfs",
}
UNITS = {
    f"lib/systemd/{'user' if path.parent.name == 'user' else 'system'}/{path.name}"
    for path in (REPOSITORY / "systemd").rglob("dedupfs*")
}


def ran(*words: object, cwd: Path = REPOSITORY, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program that knows nothing of this checkout."""
    kept = ("PATH", "HOME", "LANG", "PIP_INDEX_URL", "PIP_CACHE_DIR", "http_proxy", "https_proxy")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def build(source: Path, out: Path, *targets: str) -> None:
    words = [part for target in targets for part in ("-t", target)]
    ran(sys.executable, "-m", "hatchling", "build", "-d", out, *words, cwd=source)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a wheel and an sdist."""
    out = tmp_path_factory.mktemp("dist")
    build(REPOSITORY, out, "wheel", "sdist")
    return out


def wheel_of(directory: Path) -> Path:
    (found,) = directory.glob("*.whl")
    return found


def files_in(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_has_what_belongs_there_and_nothing_else(built: Path) -> None:
    found = set(files_in(wheel_of(built)))
    assert {name.removeprefix(DATA) for name in found if name.startswith(DATA)} == (
        PAGES | SCRIPTS | UNITS
    )
    package = {name for name in found if name.startswith("dedupfs/")}
    assert package >= {"dedupfs/py.typed", *(f"dedupfs/report/page.{end}" for end in PAGE_PARTS)}
    assert package >= {
        str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "dedupfs").rglob("*.py")
    }
    assert all(name.endswith(".py") for name in package - OTHER_FILES)
    rest = found - package - {name for name in found if name.startswith(DATA)}
    assert all(name.startswith("dedupfs-0.1.0.dist-info/") for name in rest)


PAGE_PARTS = ("css", "html", "js")
OTHER_FILES = {"dedupfs/py.typed", *(f"dedupfs/report/page.{end}" for end in PAGE_PARTS)}


def test_the_metadata_is_valid(built: Path) -> None:
    files = files_in(wheel_of(built))
    found = Metadata.from_email(files["dedupfs-0.1.0.dist-info/METADATA"], validate=True)
    assert found.license_expression == "MIT"
    assert found.description_content_type == "text/markdown"
    assert set(found.provides_extra or ()) >= {"fuse", "metrics", "fsspec", "report"}
    entry_points = files["dedupfs-0.1.0.dist-info/entry_points.txt"].decode()
    assert {"dedupfs", "mount.dedupfs", "umount.fuse.dedupfs"} <= set(
        re.findall(r"^([\w.]+) = ", entry_points, re.MULTILINE)
    )


def test_the_sdist_makes_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    build(tmp_path / "dedupfs-0.1.0", tmp_path / "out", "wheel")
    again, first = files_in(wheel_of(tmp_path / "out")), files_in(wheel_of(built))
    assert again.keys() == first.keys()
    assert {name for name in first if first[name] != again[name]} == set()


def needed(requirement: Requirement, extras: str = "") -> Iterator[metadata.Distribution]:
    """Yield what a requirement brings, as this environment has it."""
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": extras}):
        return
    found = metadata.distribution(requirement.name)
    yield found
    for text in found.requires or ():
        yield from needed(Requirement(text))


def put_beside(dependencies: list[metadata.Distribution], environment: Path) -> None:
    """Link the files of these distributions into an environment that has not got them."""
    (site,) = (environment / "lib").glob("python*/site-packages")
    for found in dependencies:
        for top in {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))


@pytest.fixture(scope="module")
def prefix(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and what it needs."""
    found = tmp_path_factory.mktemp("venv") / "v"
    ran(sys.executable, "-m", "venv", "--without-pip", found)
    pip = [sys.executable, "-m", "pip", "--python", found / "bin" / "python", "install", "-q"]
    ran(*pip, "--no-index", "--no-deps", "--no-compile", wheel_of(built))
    text = files_in(wheel_of(built))["dedupfs-0.1.0.dist-info/METADATA"]
    requires = Metadata.from_email(text, validate=True).requires_dist or []
    put_beside([each for one in requires for each in needed(Requirement(str(one)))], found)
    return found


def test_an_installed_dedupfs_works_without_fuse(prefix: Path, tmp_path: Path) -> None:
    try_out(prefix, tmp_path)


def try_out(prefix: Path, directory: Path) -> None:
    """Use what is installed, and find what lies beside it."""
    dedupfs = prefix / "bin" / "dedupfs"
    store, data = directory / "store", directory / "data"
    data.mkdir()
    (data / "file").write_bytes(bytes(range(256)) * 4096)
    assert ran(dedupfs, "--version").stdout == "dedupfs 0.1.0\n"
    ran(dedupfs, "init", store)
    ran(dedupfs, "import", store, data, "one")
    ran(dedupfs, "export", store, "one", directory / "out")
    assert (directory / "out" / "file").read_bytes() == (data / "file").read_bytes()
    ran(dedupfs, "check", store)
    (directory / "mnt").mkdir()
    for words, extra in (
        (["mount", store, directory / "mnt"], "fuse"),
        (["metrics", store], "metrics"),
        (["report", store, "-o", directory / "page.html"], "report"),
    ):
        failed = ran(dedupfs, *words, code=8 if extra == "fuse" else 2)
        assert len(failed.stderr.splitlines()) == 1
        assert f"pip install 'dedupfs[{extra}]'" in failed.stderr
    helper = ran(prefix / "bin" / "mount.dedupfs", store, directory / "mnt", code=32)
    assert "pip install 'dedupfs[fuse]'" in helper.stderr
    for name in PAGES | SCRIPTS | UNITS:
        assert (prefix / name).stat().st_mode & 0o777 == 0o644, name
    ran(dedupfs, "check", store)


@pytest.mark.program("man")
def test_man_shows_the_page_of_a_command(prefix: Path) -> None:
    shown = ran("man", "-M", prefix / "share" / "man", "dedupfs-mount").stdout
    assert "--snapshot" in shown
    assert "mount -t dedupfs" in ran("man", "-M", prefix / "share/man", "mount.dedupfs").stdout


@pytest.mark.long
@pytest.mark.unmeasured
def test_pip_does_it_all_by_itself(tmp_path: Path) -> None:
    """Build isolation, and an environment that has nothing else."""
    found = tmp_path / "v"
    ran(sys.executable, "-m", "venv", found)
    pip = [found / "bin" / "python", "-m", "pip", "-q"]
    try:
        ran(*pip, "download", "--no-deps", "-d", tmp_path, "click>=8.2")
    except AssertionError as exc:
        pytest.skip(f"PyPI cannot be reached: {str(exc).strip().splitlines()[-1]}")
    ran(*pip, "wheel", "--no-deps", "-w", tmp_path / "dist", REPOSITORY)
    ran(*pip, "install", wheel_of(tmp_path / "dist"))
    try_out(found, tmp_path)
