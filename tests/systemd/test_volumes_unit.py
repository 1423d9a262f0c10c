"""The volume plugin under a real systemd: started by its socket, killed, started anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.systemd.conftest import MARKS, open_files
from tests.systemd.host import Host

pytestmark = MARKS
CALL = """
import http.client, socket, sys
connection = http.client.HTTPConnection("plugin")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect("/run/docker/plugins/dedupfs.sock")
connection.request("POST", sys.argv[1], sys.argv[2])
print(connection.getresponse().read().decode())
"""
UNITS = "dedupfs-volumes.socket dedupfs-volumes.service"


@pytest.fixture
def plugin(host: Host) -> Iterator[Host]:
    drop_ins = "/run/systemd/system/dedupfs-volumes.service.d"
    host.put("/run/call.py", CALL)
    host.put(f"{drop_ins}/stores.conf", "[Service]\nEnvironment=STORES=/data/store\n")
    host.run("systemctl daemon-reload && systemctl start dedupfs-volumes.socket")
    yield host
    host.run(f"systemctl stop {UNITS}; rm -r {drop_ins}; systemctl daemon-reload")
    host.run("! grep fuse.dedupfs /proc/mounts")


def call(host: Host, name: str, **said: str) -> Any:
    answer = json.loads(host.run(f"{host.python} /run/call.py /{name} '{json.dumps(said)}'"))
    assert not answer.get("Err"), answer
    return answer


def test_its_socket_starts_it_and_mounts_outlive_it(plugin: Host) -> None:
    assert plugin.run("systemctl is-active dedupfs-volumes.service", code=3) == "inactive"
    assert call(plugin, "Plugin.Activate") == {"Implements": ["VolumeDriver"]}
    plugin.run("systemctl is-active dedupfs-volumes.service")
    call(plugin, "VolumeDriver.Create", Name="unit")
    where = call(plugin, "VolumeDriver.Mount", Name="unit", ID="one")["Mountpoint"]
    plugin.run(f"mountpoint {where}")  # asked outside of the service: its mounts are everybody's
    plugin.run(f"echo kept > {where}/file")
    pid = plugin.show("dedupfs-volumes.service", "MainPID")
    assert plugin.run(f"readlink /proc/{pid}/ns/mnt") == plugin.run("readlink /proc/1/ns/mnt")
    assert open_files(plugin, pid) > 1024
    plugin.run("systemctl restart dedupfs-volumes.service")
    assert plugin.show("dedupfs-volumes.service", "MainPID") != pid
    assert call(plugin, "VolumeDriver.Mount", Name="unit", ID="two")["Mountpoint"] == where
    plugin.run("systemctl kill --kill-whom=main --signal=KILL dedupfs-volumes.service")
    (volume,) = call(plugin, "VolumeDriver.List")["Volumes"]
    assert (volume["Name"], volume["Mountpoint"], volume["Status"]["users"]) == ("unit", where, 2)
    plugin.run(f"grep kept {where}/file")
    for user in ("one", "two"):
        call(plugin, "VolumeDriver.Unmount", Name="unit", ID=user)
    plugin.run(f"! mountpoint {where}")
    call(plugin, "VolumeDriver.Remove", Name="unit")
