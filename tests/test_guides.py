"""Every command in docs/guide/ works as it stands there.

Method: the ```sh blocks of a guide run in order in one bash (`set -eu`), in an empty directory,
with this checkout's dedupfs first on PATH; the guide's own commands check what they lead to. Blocks
of `console` and `text` are only shown. The script has the guide's line numbers, so what bash
complains of is found in the guide. CONTRIBUTING.md has the conventions.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import detach, fuse_mounts_below

pytestmark = pytest.mark.unmeasured

ROOT = Path(__file__).resolve().parent.parent
GUIDES = ROOT / "docs" / "guide"
LIMIT_S = 240
RUNS = "sh"
SHOWN = {"console", "text", "ini", "json", "yaml"}
MARKERS = {"fuse", "root", "slow"}
_NEEDS = re.compile(r"\A(?:#[^\n]*\n\s*)?<!-- needs: ([^\n]*?) -->")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})\s*(.*?)\s*$")
TRACE = "PS4='+$LINENO: '; set -x"  # bash takes no PS4 from root's environment
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class GuideError(Exception):
    """A guide that cannot be run as it is written."""


@dataclass(frozen=True)
class Done:
    """How the commands of a guide ended, and all that they said."""

    code: int
    said: str


def script_of(guide: str) -> str:
    """Return the commands of a guide, each in the line where it stands."""
    script = []
    fence = language = ""
    for number, line in enumerate(guide.splitlines(), start=1):
        found = _FENCE.match(line)
        if not fence and found is not None:
            fence, language = found.groups()
            if language != RUNS and language not in SHOWN:
                known = ", ".join([RUNS, *sorted(SHOWN)])
                raise GuideError(f"line {number}: a block of {language!r}, not of {known}")
            script.append("")
        elif fence and line.strip() == fence:
            fence = ""
            script.append("")
        else:
            script.append(line if fence and language == RUNS else "")
    if fence:
        raise GuideError("the last block does not end")
    if not any(script):
        raise GuideError(f"there is no block of {RUNS}: nothing in it is tested")
    script[0] = TRACE  # never a command's line: a block begins above it
    return "\n".join(script) + "\n"


def needs_of(guide: str) -> list[pytest.MarkDecorator]:
    """Return the markers that the comment at a guide's top asks for."""
    found = _NEEDS.match(guide)
    if found is None:
        if "<!-- needs:" in guide:
            raise GuideError("<!-- needs: --> stands at the top, or right below the title")
        return []
    marks = []
    for word in found[1].split():
        marker, _, program = word.partition(":")
        if marker == "program" and program:
            marks.append(pytest.mark.program(program))
        elif word in MARKERS:
            marks.append(getattr(pytest.mark, word))
        else:
            raise GuideError(f"needs {word!r}: there is fuse, root, slow and program:NAME")
    return marks


def run_guide(guide: str, name: str, place: Path) -> Done:
    """Run a guide's commands below ``place``; nothing of them is mounted or runs afterwards."""
    work, home, programs = (place / part for part in ("work", "home", "bin"))
    for directory in (work, home, programs):
        directory.mkdir(parents=True)
    ours = programs / "dedupfs"
    ours.write_text(
        f"#!{sys.executable}\nimport sys\nfrom dedupfs.cli import main\nsys.exit(main())\n"
    )
    ours.chmod(0o755)
    script = place / name
    script.write_text(script_of(guide))
    said = place / "said"
    environment = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{_PATH}",
        "PYTHONPATH": os.fspath(ROOT),
        "HOME": os.fspath(home),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    with said.open("wb") as out:
        bash = subprocess.Popen(
            ["bash", "-eu", os.fspath(script)],
            cwd=work,
            env=environment,
            umask=0o022,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = bash.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            undo(bash, ours, environment, place)
    return Done(code, said.read_text(errors="replace"))


def undo(
    bash: subprocess.Popen[bytes], ours: Path, environment: dict[str, str], place: Path
) -> None:
    """End what bash still has running, and unmount what was mounted below ``place``."""
    with suppress(ProcessLookupError):
        os.killpg(bash.pid, signal.SIGKILL)  # a daemon of dedupfs has a session of its own
    bash.wait(60)
    for point in fuse_mounts_below(place.resolve()):
        subprocess.run([ours, "umount", point], env=environment, check=False, timeout=60)
    for point in fuse_mounts_below(place.resolve()):
        detach(point)


def marks_of(path: Path) -> list[pytest.MarkDecorator]:
    with suppress(GuideError):  # the test says so; to raise here would end the whole run
        return needs_of(path.read_text())
    return []


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.name, marks=marks_of(p)) for p in sorted(GUIDES.glob("*.md"))],
)
def test_every_command_of_a_guide_works(path: Path, tmp_path: Path) -> None:
    needs_of(path.read_text())
    done = run_guide(path.read_text(), path.name, tmp_path / "guide")
    assert done.code == 0, f"exit code {done.code}, after this (line: command):\n{done.said}"


# --- of the test itself ---------------------------------------------------------------------------

GUIDE = """\
# A guide
<!-- needs: fuse program:sh -->

```sh
FIRST=one
```
Words, `code`, and what is only shown:
```console
$ exit 1
```
```sh
test "$FIRST" = one
command -v dedupfs | grep guide/bin/dedupfs
touch here
false
touch never
```
"""


def test_blocks_run_in_one_shell_up_to_the_first_failure(tmp_path: Path) -> None:
    done = run_guide(GUIDE, "a-guide.md", tmp_path / "guide")
    assert done.code == 1
    assert done.said.splitlines()[-1] == "+15: false"
    assert os.listdir(tmp_path / "guide" / "work") == ["here"]


def test_an_unset_variable_ends_a_guide(tmp_path: Path) -> None:
    done = run_guide('```sh\nls "$NOWHERE"\n```\n', "unset.md", tmp_path / "guide")
    assert done.code != 0
    assert "unset.md: line 2: NOWHERE" in done.said


def test_a_guide_tells_what_it_needs() -> None:
    names = [(mark.name, mark.args) for mark in needs_of(GUIDE)]
    assert names == [("fuse", ()), ("program", ("sh",))]
    assert needs_of("# None\n\n<!-- needs: root slow -->\n")[0].name == "root"
    assert needs_of("# None\n") == []
    for wrong in (
        "<!-- needs: fuze -->",
        "<!-- needs: program: -->",
        "# a\nb\n<!-- needs: fuse -->",
    ):
        with pytest.raises(GuideError, match="needs"):
            needs_of(wrong)


@pytest.mark.parametrize("guide", ["```\nls\n```", "```bash\nls\n```", "```sh\nls\n", "no block"])
def test_a_guide_that_would_not_be_tested_is_refused(guide: str) -> None:
    with pytest.raises(GuideError):
        script_of(guide)


@pytest.mark.fuse
def test_what_a_guide_mounts_is_unmounted_even_when_it_fails(tmp_path: Path) -> None:
    commands = ["mkdir mnt", "dedupfs mount store mnt", "touch mnt/file", "sleep 600 &", "false"]
    guide = "\n".join(["```sh", *commands, "```"])
    done = run_guide(guide, "fails.md", tmp_path / "guide")
    assert done.code == 1, done.said
    assert fuse_mounts_below(tmp_path.resolve()) == []
