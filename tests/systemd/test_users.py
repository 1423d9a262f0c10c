"""Ordinary users: the unit of their own service manager, and services of root that are theirs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.systemd.conftest import MARKS, commands_of_the_guide
from tests.systemd.host import REPOSITORY, Host

pytestmark = MARKS
NAME = "dedupfs-user"
HOME = f"/home/{NAME}"
ENVIRONMENT = f"STORE={HOME}/store\nMOUNTPOINT={HOME}/mnt\nOPTIONS=\n"
DROP_INS = "/run/systemd/system"


@dataclass(frozen=True)
class User:
    """An ordinary user of the machine, whose service manager runs."""

    host: Host
    uid: str

    def command(self, command: str) -> str:
        words = ["runuser", "-u", NAME, "--", "env", f"XDG_RUNTIME_DIR=/run/user/{self.uid}"]
        return shlex.join([*words, f"HOME={HOME}", "sh", "-c", command])

    def run(self, command: str, *, code: int | None = 0) -> str:
        return self.host.run(self.command(command), code=code)

    def until(self, command: str) -> str:
        return self.host.until(self.command(command))


@pytest.fixture(scope="session")
def account(machine: Host) -> Iterator[User]:
    """Made once: a worker of pytest-xdist may come back to this module from another one."""
    host = machine
    host.run(f"useradd --create-home --home-dir {HOME} {NAME}")
    uid = host.run(f"id -u {NAME}")
    try:
        host.run(f"loginctl enable-linger {NAME} && systemctl start user@{uid}")
    except AssertionError as exc:
        pytest.skip(f"no service manager for users in there (libpam-systemd?): {exc}")
    user = User(host, uid)
    user.run(f"dedupfs init {HOME}/store && mkdir -p {HOME}/mnt {HOME}/.config/dedupfs")
    user.run(f"printf '{ENVIRONMENT}' > {HOME}/.config/dedupfs/mine.env")
    for command in commands_of_the_guide("systemctl --user link "):
        user.run(command)
    host.put("/etc/dedupfs/mine.env", ENVIRONMENT)
    yield user
    if host.nspawn is not None:  # a test that failed has said so
        user.run(f"dedupfs check {HOME}/store")


@pytest.fixture
def user(host: Host, account: User) -> User:
    """The user, whose service manager runs: the machine may have been booted again."""
    host.run(f"systemctl start user@{account.uid}")
    return account


@pytest.fixture
def unmounted(user: User) -> Iterator[User]:
    """The user, whose mount is gone in the end."""
    yield user
    user.run(f"! grep {HOME}/mnt /proc/mounts")


def test_a_users_service_is_upgraded_killed_mounted_anew_and_there_after_a_boot(
    unmounted: User,
) -> None:
    user = unmounted
    user.run("systemctl --user start dedupfs@mine")
    pid = user.run("systemctl --user show -P MainPID dedupfs@mine")
    assert user.host.run(f"stat --format=%u /proc/{pid}") == user.uid
    assert user.run("systemctl --user show -P StatusText dedupfs@mine").startswith(
        f"{HOME}/store on {HOME}/mnt, answered by process "
    )
    user.run(
        "exec 3> ~/mnt/open; echo one >&3; systemctl --user reload dedupfs@mine; echo two >&3; "
        f"kill -KILL $(cat /proc/{pid}/task/*/children); echo three >&3; exec 3>&-; "
        "test \"$(cat ~/mnt/open)\" = 'one\ntwo\nthree'"
    )
    user.run("systemctl --user kill --signal=KILL dedupfs@mine")
    user.until("test $(systemctl --user show -P NRestarts dedupfs@mine) = 1")
    user.until("systemctl --user is-active dedupfs@mine && grep three ~/mnt/open")
    user.run("systemctl --user enable dedupfs@mine")
    user.host.run(f"systemctl restart user@{user.uid}")  # as a boot does it, who lingers
    user.until("systemctl --user is-active dedupfs@mine && grep three ~/mnt/open")
    user.run("systemctl --user disable --now dedupfs@mine")


def test_a_users_store_that_is_not_there_is_not_made(user: User) -> None:
    user.run("printf 'STORE=%s/none\nMOUNTPOINT=%s/mnt\n' ~ ~ > ~/.config/dedupfs/none.env")
    user.run("systemctl --user start dedupfs@none", code=1)
    user.run("systemctl --user stop dedupfs@none; ! test -e ~/none")


def test_roots_service_may_be_a_users_with_the_drop_in_of_the_guide(unmounted: User) -> None:
    guide = (REPOSITORY / "docs" / "guide" / "systemd.md").read_text()
    found = re.search(r"```ini\n(\[Service\]\nUser=.*?)```", guide, re.DOTALL)
    assert found is not None
    drop_in = found[1].replace("User=me\n", f"User={NAME}\n")
    assert drop_in != found[1]
    host, directory = unmounted.host, f"{DROP_INS}/dedupfs@mine.service.d"
    host.put(f"{directory}/user.conf", drop_in)
    host.run("systemctl daemon-reload && systemctl start dedupfs@mine")
    pid = host.show("dedupfs@mine", "MainPID")
    assert host.run(f"stat --format=%u /proc/{pid}") == unmounted.uid
    assert host.run(f"grep CapEff: /proc/{pid}/status").split() == ["CapEff:", "0" * 16]
    unmounted.run("echo kept > ~/mnt/file")
    host.run("systemctl kill --signal=KILL dedupfs@mine")
    host.until("test $(systemctl show -P NRestarts dedupfs@mine) = 1")
    host.until("systemctl is-active dedupfs@mine")
    unmounted.run("grep kept ~/mnt/file")
    host.run(f"systemctl stop dedupfs@mine; rm -r {directory}; systemctl daemon-reload")


def test_gc_and_scrub_of_a_users_store_below_home_run_as_that_user(unmounted: User) -> None:
    host = unmounted.host
    instance = host.run(f"systemd-escape --path {HOME}/store")
    for name in ("gc", "scrub"):
        unit = f"dedupfs-{name}@{instance}.service"
        host.run(f"systemctl start '{unit}'", code=1)  # in a sandbox that lets root look nowhere
        assert "belongs to user" in host.run(f"journalctl --boot --output=cat --unit '{unit}'")
        directory = f"{DROP_INS}/{unit}.d"
        host.put(f"{directory}/user.conf", f"[Service]\nUser={NAME}\n")
        host.run(f"systemctl daemon-reload && systemctl start '{unit}'")
        assert host.show(unit, "Result") == "success"
        assert host.show(unit, "ExecMainStatus") == "0"
        host.run(f"rm -r '{directory}'; systemctl daemon-reload")
    assert unmounted.run(f"find {HOME}/store ! -user {NAME}") == ""


def test_labels_are_for_root_alone(unmounted: User) -> None:
    said = unmounted.run("mount.dedupfs ~/store ~/mnt -o context=u:object_r:t:s0", code=32)
    assert said.startswith(f"mount.dedupfs: cannot mount on {HOME}/mnt: context=")
    assert said.endswith("is for root alone")
