"""make builds on a mount, and builds again only what changed; so after a remount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.programs.place import Place, run

pytestmark = [pytest.mark.unmeasured, pytest.mark.fuse, pytest.mark.program("make", "cc", "ar")]

MAKEFILE = """
CFLAGS = -O1 -Wall -Werror -MMD -Iinclude
objects = $(patsubst %.c,%.o,$(wildcard part*.c))
program: main.o libparts.a
	$(CC) -o $@ main.o -L. -lparts
libparts.a: $(objects)
	$(AR) rcsD $@ $(objects)
-include *.d
"""
PARTS = 8


def write_sources(top: Path) -> None:
    """Parts, and a header that is reached by two names: it is one file, and `once` is once."""
    (top / "include").mkdir(parents=True)
    (top / "include" / "parts.h").write_text(
        "#pragma once\n" + "".join(f"int part{n}(void);\n" for n in range(PARTS))
        + "static const int base = 100;\n"
    )  # fmt: skip
    (top / "include" / "again.h").hardlink_to(top / "include" / "parts.h")
    (top / "include" / "soft.h").symlink_to("parts.h")
    includes = "".join(f'#include "{name}.h"\n' for name in ("parts", "again", "soft", "parts"))
    for n in range(PARTS):
        (top / f"part{n}.c").write_text(f"{includes}int part{n}(void) {{ return base + {n}; }}\n")
    calls = "+".join(f"part{n}()" for n in range(PARTS))
    (top / "main.c").write_text(
        f'#include <stdio.h>\n{includes}int main(void) {{ printf("%d\\n", {calls}); return 0; }}\n'
    )
    (top / "Makefile").write_text(MAKEFILE)


def compiled(said: str) -> list[str]:
    return sorted(line.split()[-1] for line in said.splitlines() if " -c " in line)


def test_make_builds_what_changed_and_nothing_else(place: Place) -> None:
    everything = ["main.c", *(f"part{n}.c" for n in range(PARTS))]
    for top in (place.native / "project", place.mount / "project"):
        write_sources(top)
        assert compiled(run("make", "-C", top, "-j2")) == everything
        run("make", "-C", top, "--question")
        assert run(top / "program") == "828\n"
    native, mount = place.native / "project", place.mount / "project"
    for name in ("program", "libparts.a"):
        assert (mount / name).read_bytes() == (native / name).read_bytes()

    place.remount()
    run("make", "-C", mount, "--question")
    assert run(mount / "program") == "828\n"
    (mount / "part3.c").write_text((mount / "part3.c").read_text().replace("base", "1 + base"))
    assert compiled(run("make", "-C", mount)) == ["part3.c"]
    assert run(mount / "program") == "829\n"
    (mount / "include" / "again.h").write_text(
        (mount / "include" / "parts.h").read_text().replace("100", "200")
    )
    assert compiled(run("make", "-C", mount, "-j2")) == everything
    assert run(mount / "program") == "1629\n"
    run("make", "-C", mount, "--question")
    os.utime(mount / "main.c")
    assert compiled(run("make", "-C", mount)) == ["main.c"]
    place.remount()
    run("make", "-C", mount, "--question")
