"""pip and venv install into a mount, numpy and safetensors map files of it.

Method: a wheel that the test makes; results are compared with those on a native directory, read in
another process, and read again after a remount.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from tests.programs.place import Place, listing, python, run

pytestmark = [pytest.mark.unmeasured, pytest.mark.fuse, pytest.mark.filterwarnings("error")]

MODULE_COUNT = 40
DIST_INFO = "tiny-1.0.dist-info"


def make_wheel(directory: Path) -> Path:
    """Make a wheel of some modules, a data file and a command."""
    wheel = directory / "tiny-1.0-py3-none-any.whl"
    files = {f"tiny/m{n}.py": f"def value():\n    return {n}\n" for n in range(MODULE_COUNT)}
    files["tiny/__init__.py"] = "def main():\n    print('tiny at work')\n"
    files["tiny/data.bin"] = "\0data" * 50_000
    files[f"{DIST_INFO}/METADATA"] = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
    files[f"{DIST_INFO}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{DIST_INFO}/entry_points.txt"] = "[console_scripts]\ntiny = tiny:main\n"
    record = f"{DIST_INFO}/RECORD"
    files[record] = "".join(f"{name},,\n" for name in [*files, record])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return wheel


IMPORT_ALL = f"""
import importlib, sys
sys.path.insert(0, sys.argv[1])
print(sum(importlib.import_module(f"tiny.m{{n}}").value() for n in range({MODULE_COUNT})))
"""
SUM = f"{sum(range(MODULE_COUNT))}\n"
PIP = [
    *("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-cache-dir"),
    *("--disable-pip-version-check", "--root-user-action=ignore", "--no-warn-script-location"),
]


def test_pip_installs_a_wheel_into_a_directory(place: Place) -> None:
    wheel = make_wheel(place.native)
    for top in place.both():
        run(sys.executable, *PIP, "--target", top / "site", wheel, cwd=top)
        assert python(IMPORT_ALL, top / "site") == SUM
    native, mount = (
        listing(top / "site", without=["__pycache__"], times=False) for top in place.both()
    )
    assert mount == native
    place.remount()
    assert python(IMPORT_ALL, place.mount / "site") == SUM
    run(sys.executable, *PIP, "--upgrade", "--target", place.mount / "site", wheel)
    assert python(IMPORT_ALL, place.mount / "site") == SUM


def test_a_virtual_environment_works_before_and_after_a_remount(place: Place) -> None:
    wheel, env = make_wheel(place.native), place.mount / "env"
    run(sys.executable, "-m", "venv", "--without-pip", env)
    run(sys.executable, "-m", "pip", "--python", env / "bin" / "python", *PIP[2:], wheel)
    assert run(env / "bin" / "tiny") == "tiny at work\n"
    place.remount()
    assert run(env / "bin" / "tiny") == "tiny at work\n"
    where = run(env / "bin" / "python", "-c", "import sys, tiny; print(sys.prefix, tiny.__file__)")
    prefix, module = where.split()
    assert Path(prefix) == env
    assert Path(module).is_relative_to(env)


@pytest.mark.long
def test_a_virtual_environment_with_its_own_pip(place: Place) -> None:
    wheel, env = make_wheel(place.native), place.mount / "env"
    run(sys.executable, "-m", "venv", "--copies", env)
    run(env / "bin" / "python", *PIP, wheel)
    place.remount()
    assert run(env / "bin" / "tiny") == "tiny at work\n"
    run(env / "bin" / "python", "-m", "pip", "check")
    run(env / "bin" / "python", "-m", "pip", "uninstall", "--yes", "tiny")
    assert not (env / "bin" / "tiny").exists()


WRITE_MEMMAP = """
import sys, numpy
array = numpy.memmap(sys.argv[1], dtype="f4", mode="r+", shape=(1000, 3000))
array[::7, 5:2900:3] += 1.0
array[999] = numpy.arange(3000)
array.flush()
"""
READ_MEMMAP = """
import sys, hashlib, numpy
array = numpy.memmap(sys.argv[1], dtype="f4", mode="r", shape=(1000, 3000))
print(hashlib.sha256(array.tobytes()).hexdigest(), array[999, 2999], array[:998].sum())
"""
MAKE_ARRAY = """
import sys, numpy
numpy.random.default_rng(3).random((1000, 3000), dtype="f4").tofile(sys.argv[1])
"""


def test_a_numpy_memmap_that_is_changed_in_place_is_read_by_another_process(place: Place) -> None:
    said = []
    for top in place.both():
        python(MAKE_ARRAY, top / "array")
        python(WRITE_MEMMAP, top / "array")
        said.append(python(READ_MEMMAP, top / "array"))
    assert said[0] == said[1]
    place.remount()
    assert python(READ_MEMMAP, place.mount / "array") == said[0]
    python(WRITE_MEMMAP, place.mount / "array")  # now settled chunks are changed through a mapping
    python(WRITE_MEMMAP, place.native / "array")
    assert python(READ_MEMMAP, place.mount / "array") == python(READ_MEMMAP, place.native / "array")
    assert (place.mount / "array").read_bytes() == (place.native / "array").read_bytes()


SAVE = """
import sys, numpy
from safetensors.numpy import save_file
source = numpy.random.default_rng(4)
tensors = {f"layer.{n}.weight": source.random((257, 301), dtype="f4") for n in range(40)}
tensors["step"] = numpy.array([int(sys.argv[2])])
save_file(tensors, sys.argv[1], metadata={"format": "np"})
"""
LOAD = """
import hashlib, json, mmap, struct, sys
import numpy
from safetensors import safe_open
from safetensors.numpy import load_file
path = sys.argv[1]
loaded = load_file(path)
with safe_open(path, framework="np") as opened, open(path, "rb") as file:
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # zero-copy, as loaders do it
    (header_bytes,) = struct.unpack_from("<Q", mapping)
    header = json.loads(mapping[8 : 8 + header_bytes])
    for name in sorted(opened.keys()):
        start, stop = header[name]["data_offsets"]
        view = memoryview(mapping)[8 + header_bytes + start : 8 + header_bytes + stop]
        assert view.tobytes() == opened.get_tensor(name).tobytes() == loaded[name].tobytes()
        print(name, hashlib.sha256(view).hexdigest())
"""


def test_safetensors_are_saved_and_mapped(place: Place) -> None:
    names = ["step-1", "step-2"]
    for top in place.both():
        for number, name in enumerate(names):
            python(SAVE, top / name, str(number))
    native, mount = place.both()
    for name in names:
        assert (mount / name).read_bytes() == (native / name).read_bytes()
        assert python(LOAD, mount / name) == python(LOAD, native / name)
    place.remount()
    for name in names:
        assert python(LOAD, mount / name) == python(LOAD, native / name)
