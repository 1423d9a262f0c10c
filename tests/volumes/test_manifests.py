"""The YAML of docs/guide/containers.md is what Compose and Kubernetes understand.

Method: the blocks as they stand there, read by the system's Python, whose yaml the tests' lacks;
``docker-compose config`` for the first. What is asserted of the others comes from the API reference
of Kubernetes v1 (Pod, PersistentVolume, PersistentVolumeClaim).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dedupfs.volumes import options
from tests.guide_yaml import documents, yaml_blocks

ROOT = Path(__file__).resolve().parent.parent.parent
GUIDE = ROOT / "docs" / "guide" / "containers.md"


def test_the_compose_file_names_volumes_that_the_plugin_makes() -> None:
    (compose,) = documents(yaml_blocks(GUIDE)[0])
    for name, volume in compose["volumes"].items():
        assert volume["driver"] == "dedupfs"
        options.parse(name, volume["driver_opts"], [Path("/srv/store")], int)
    used = {mount.split(":")[0] for s in compose["services"].values() for mount in s["volumes"]}
    assert used == set(compose["volumes"])


@pytest.mark.program("docker-compose")
def test_compose_takes_the_compose_file(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(yaml_blocks(GUIDE)[0])
    done = subprocess.run(
        ["docker-compose", "-f", "compose.yaml", "config", "--quiet"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_a_pod_sees_mounts_that_come_after_it() -> None:
    (pod,) = documents(yaml_blocks(GUIDE)[1])
    assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")
    (container,) = pod["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    (volume,) = pod["spec"]["volumes"]
    assert mount["name"] == volume["name"]
    assert mount["mountPropagation"] == "HostToContainer"
    assert set(volume) == {"name", "hostPath"}
    assert volume["hostPath"]["path"].startswith("/")


def test_the_claim_gets_the_volume_of_one_node() -> None:
    volume, claim = documents(yaml_blocks(GUIDE)[2])
    assert (volume["kind"], claim["kind"]) == ("PersistentVolume", "PersistentVolumeClaim")
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    for field in ("accessModes", "storageClassName"):
        assert claim["spec"][field] == volume["spec"][field]
    assert claim["spec"]["resources"]["requests"] == volume["spec"]["capacity"]
    terms = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]  # local: needs one
    assert terms[0]["matchExpressions"][0]["key"] == "kubernetes.io/hostname"
