"""A machine with systemd as process 1: this root file system under an overlay, in systemd-nspawn.

Boots in about a second. Whatever is written goes to memory and is gone with it, but for the
directory ``data``, which lies on this machine and outlives a boot. Leaves nothing behind on this
machine, and any number of them run side by side. Knows no test. Source: systemd-nspawn(1).
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.systemd.groups import Groups

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 60
MACHINE_ID = "0123456789abcdef0123456789abcdef"
TARGET = "[Unit]\nRequires=basic.target\nAfter=basic.target\n"
INSTALLED = "/opt/dedupfs"
"""Where the program lies in there: not below /tmp, which nspawn covers with its own."""
FUSE = os.makedev(10, 229)  # Linux, Documentation/admin-guide/devices.txt
# nspawn(1) writes below /run what it knows of its machines, and leaves some of it there. Its
# namespace has copies of all mounts: those of the test next door would not end before it does.
STARTING = """\
for group in $GROUPS_OF_ITS_OWN; do echo $$ >$group/cgroup.procs || exit; done
umount --lazy --no-canonicalize --all --types fuse.dedupfs
mount -t tmpfs dedupfs-test /run && exec systemd-nspawn "$@"
"""


class CannotBootError(Exception):
    """This machine does not let us; the text says why."""


@dataclass
class Host:
    """One machine. ``directory`` is empty, and the test's own."""

    directory: Path
    data: Path
    name: str = field(default_factory=lambda: f"dedupfs-{uuid.uuid4().hex[:12]}")
    nspawn: subprocess.Popen[bytes] | None = None
    leader: int = 0
    binds: list[str] = field(default_factory=list)
    groups: Groups | None = None

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def layers(self) -> Path:
        return self.directory / "layers"

    @property
    def console(self) -> Path:
        return self.directory / "console"

    @property
    def python(self) -> str:
        """A command in there that runs Python with our program."""
        python = sys.executable
        if sys.prefix != sys.base_prefix:
            python = f"{INSTALLED}/venv/{Path(python).relative_to(sys.prefix)}"
        return f"env PYTHONPATH={INSTALLED} {python}"

    def prepare(self) -> None:
        """Lay the overlay over this machine's root file system; nothing of ours is in there yet.

        Raises:
            CannotBootError: not allowed, or not possible.
        """
        self.layers.mkdir()
        self._mount("-t", "tmpfs", "-o", "mode=0755", "dedupfs-test", self.layers)
        for name in ("upper", "work"):
            (self.layers / name).mkdir()
        self.root.mkdir()
        options = f"lowerdir=/,upperdir={self.layers}/upper,workdir={self.layers}/work"
        self._mount("-t", "overlay", "-o", options, "dedupfs-test", self.root)
        self.write("etc/machine-id", MACHINE_ID + "\n")
        self.write("etc/fstab", "")
        self.write("etc/systemd/system/dedupfs-test.target", TARGET)
        try:
            # A node of its own: whoever may open it in there, this machine's stays as it is.
            os.mknod(self.layers / "fuse", stat.S_IFCHR, FUSE)
            (self.layers / "fuse").chmod(0o666)
            self.groups = Groups(self.name)
            self.groups.make()
        except OSError as exc:
            raise CannotBootError(str(exc)) from exc

    def install(self) -> None:
        """Put our programs and units below INSTALLED; it keeps its journal from boot to boot."""
        (self.root / "var/log/journal").mkdir(parents=True, exist_ok=True)
        shutil.copytree(REPOSITORY / "dedupfs", self.root / INSTALLED.lstrip("/") / "dedupfs")
        for name in ("dedupfs", "mount.dedupfs", "umount.fuse.dedupfs"):
            self._write_program(name)
        for manager, directory in (("system", "."), ("user", "user")):
            for unit in (REPOSITORY / "systemd" / directory).glob("dedupfs*"):
                self.write(f"{INSTALLED}/lib/systemd/{manager}/{unit.name}", unit.read_text())
        subprocess.run(["chmod", "--recursive", "a+rX", f"{self.root}{INSTALLED}"], check=True)
        if sys.prefix != sys.base_prefix:
            self.binds.append(f"--bind-ro={sys.prefix}:{INSTALLED}/venv")
        base = Path(sys.base_prefix)
        if base.stat().st_dev == Path("/").stat().st_dev and base.parts[1] != "tmp":
            for parent in base.parents:  # ordinary users in there run it, too
                inside = self.root / parent.relative_to("/")
                inside.chmod(stat.S_IMODE(inside.stat().st_mode) | 0o111)
        else:
            self.binds.append(f"--bind-ro={base}")

    def write(self, name: str, text: str) -> None:
        """Write a file of a machine that is not running."""
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)

    def boot(self) -> None:
        """Start it, and wait until it is up."""
        assert self.groups is not None
        self.groups.make()
        binds = [f"--bind={self.data}:/data", f"--bind={self.layers}/fuse:/dev/fuse", *self.binds]
        binds += ["--bind=/dev/autofs"] if Path("/dev/autofs").exists() else []
        command = [
            "setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--propagation=slave",
            "sh", "-c", STARTING, "sh",
            "--quiet", "--boot", f"--directory={self.root}", "--register=no", "--keep-unit",
            "--console=pipe", "--private-network", "--link-journal=no",
            "--kill-signal=SIGRTMIN+3", f"--machine={self.name}", *binds, "--",
            "systemd.unit=dedupfs-test.target", "systemd.mask=tmp.mount",
        ]  # fmt: skip
        groups = " ".join(str(directory) for directory in self.groups.directories)
        with self.console.open("ab") as console:
            self.nspawn = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, "GROUPS_OF_ITS_OWN": groups},
            )
        self.leader = self._first_process()
        self.until("systemctl is-active dedupfs-test.target")

    def run(self, command: str, *, code: int | None = 0) -> str:
        """Run a shell command in there; return what it said, or fail the test with it."""
        done = self._run(command)
        if code is not None and done.returncode != code:
            raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}\n{self.journal()}")
        return done.stdout.strip()

    def put(self, path: str, text: str) -> None:
        """Write a file in there, and the directory around it."""
        directory, file = shlex.quote(str(Path(path).parent)), shlex.quote(path)
        self.run(f"mkdir -p {directory} && printf %s {shlex.quote(text)} > {file}")

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start one that goes on."""
        return subprocess.Popen(
            self._inside(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )

    def until(self, command: str) -> str:
        """Run a command until it succeeds; nothing announces what systemd does."""
        loop = f"until said=$({command}); do sleep 0.1; done; printf '%s\\n' \"$said\""
        try:  # in there: to enter it costs more than most commands
            done = self._run(f"timeout {LIMIT_S} sh -c {shlex.quote(loop)}", LIMIT_S + 20)
        except subprocess.TimeoutExpired as exc:
            raise AssertionError(f"never: {command}\n{self.journal()}") from exc
        if done.returncode != 0:
            raise AssertionError(f"never: {command}: {done.stdout[-2000:]}\n{self.journal()}")
        return done.stdout.strip()

    def show(self, unit: str, name: str) -> str:
        return self.run(f"systemctl show --property={name} --value '{unit}'")

    def journal(self) -> str:
        return self._run("journalctl --no-pager --lines=60 --output=short-monotonic").stdout

    def shut_down(self) -> None:
        """Let it stop its units in order, and end whatever is left then."""
        assert self.nspawn is not None
        os.kill(self.leader, signal.SIGRTMIN + 4)  # poweroff.target: systemd(1), SIGNALS
        try:
            self.nspawn.wait(2 * LIMIT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not shut down\n{self.journal()}") from None
        self.lose_power()

    def lose_power(self) -> None:
        """End all of its processes at once: none of them learns of it."""
        if self.nspawn is None:
            return
        if self.leader and self.nspawn.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.leader, signal.SIGKILL)  # the first of a PID namespace takes all along
        else:
            self.nspawn.kill()
        self.nspawn.wait(LIMIT_S)
        self.nspawn = None
        self.leader = 0
        assert self.groups is not None
        self.groups.remove()

    def remove(self) -> None:
        self.lose_power()
        if self.groups is not None:
            self.groups.remove()
        for path in (self.root, self.layers):
            while os.path.ismount(path):
                subprocess.run(["umount", "--lazy", path], check=True)

    def _write_program(self, name: str) -> None:
        calls = {
            "dedupfs": "from dedupfs.cli import main",
            "mount.dedupfs": "from dedupfs.cli.mounthelper import mount_main as main",
            "umount.fuse.dedupfs": "from dedupfs.cli.mounthelper import umount_main as main",
        }
        text = f'#!/bin/sh\nexec {self.python} -c "import sys; '
        text += f'sys.argv[0] = \'{name}\'; {calls[name]}; sys.exit(main())" "$@"\n'
        self.write(f"{INSTALLED}/bin/{name}", text)
        (self.root / INSTALLED.lstrip("/") / "bin" / name).chmod(0o755)

    def _first_process(self) -> int:
        """Return nspawn's child, as soon as it is there."""
        assert self.nspawn is not None
        deadline = time.monotonic() + LIMIT_S
        children = Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children")
        while time.monotonic() < deadline:
            if self.nspawn.poll() is not None:
                raise CannotBootError(self.console.read_text(errors="replace").strip()[-500:])
            with suppress(FileNotFoundError, ProcessLookupError):  # one that has ended meanwhile
                for child in children.read_text().split():
                    if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                        return int(child)
            select.select([], [], [], 0.02)
        raise CannotBootError("no systemd within the limit")

    def _inside(self, command: str) -> list[str]:
        entered = ["nsenter", "--target", str(self.leader), "--all"]
        return [*entered, "env", "-i", "--chdir=/", f"PATH={PATH}", "sh", "-c", command]

    def _run(self, command: str, limit_s: int = LIMIT_S) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._inside(command),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit_s,
        )

    def _mount(self, *words: str | Path) -> None:
        done = subprocess.run(["mount", *words], check=False, capture_output=True, text=True)
        if done.returncode:
            raise CannotBootError(done.stderr.strip())


PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
