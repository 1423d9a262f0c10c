"""metrics: what Prometheus is told is what the daemons and the store say.

Method: real mounts, asked over HTTP and through files; the text is read by the client's own parser.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dedupfs.namespace import live
from tests.cli.conftest import Run
from tests.fuse.harness import REPOSITORY, Daemons, Mounted, eventually, is_mounted
from tests.takeover.harness import Supervised

pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families

from dedupfs.metrics import MountCounters, render

Labels = frozenset[tuple[str, str]]
Samples = dict[tuple[str, Labels], float]
FILE_BYTES = 1 << 20
HOSTILE = 'a"b\\c\nd\udcff{}é\x1b[31m'


def parse(text: str, *also: str) -> Samples:
    """Return samples by name and labels; of those that name the mount only what is asked for."""
    left_out = {"store", "view", "mountpoint"} - set(also)
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = frozenset(pair for pair in sample.labels.items() if pair[0] not in left_out)
            assert (sample.name, labels) not in found, "one mount, one sample"
            found[sample.name, labels] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text: str = answer.read().decode()
    return text


def metrics_address(store: Path) -> str:
    (daemon,) = live.daemons(store)
    assert daemon.running.metrics
    return daemon.running.metrics


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    pytest.importorskip("pyfuse3")
    daemons = Daemons(tmp_path)
    yield daemons.start(metrics="0")
    daemons.end_all()


@pytest.mark.fuse
def test_a_mount_tells_prometheus_what_it_tells_top(run: Run, mounted: Mounted) -> None:
    for number in range(130):
        (mounted.path / f"f{number}").touch()
    (mounted.path / "big").write_bytes(random.Random(1).randbytes(FILE_BYTES))
    with pytest.raises(FileNotFoundError):
        (mounted.path / "nothing").stat()
    text = scrape(metrics_address(mounted.store))
    (daemon,) = live.daemons(mounted.store)
    counted = live.ask(daemon.socket_path, live.Counters())
    assert isinstance(counted, live.Counted)
    samples = parse(text)
    assert value(samples, "dedupfs_up") == 1
    for operation, count in counted.requests.items():
        assert value(samples, "dedupfs_requests_total", operation=operation) == count
    for name, count in counted.errors.items():
        assert value(samples, "dedupfs_request_errors_total", errno=name) == count
    assert counted.errors["ENOENT"] >= 1
    assert sum(counted.errors.values()) == counted.totals["failed_requests"]
    for name in ("read_bytes", "written_bytes", "found_bytes", "inserted_bytes", "waited_reads"):
        assert value(samples, f"dedupfs_{name}_total") == counted.totals[name]
    assert 0 < value(samples, "dedupfs_cpu_seconds_total") < 1000
    timed = value(samples, "dedupfs_request_seconds_count", operation="create")
    assert timed == counted.requests["create"] // 64
    last = value(samples, "dedupfs_request_seconds_bucket", operation="create", le="+Inf")
    assert last == timed
    assert 0 < value(samples, "dedupfs_request_seconds_sum", operation="create") < 60
    assert value(samples, "dedupfs_store_filesystem_free_bytes") > 0
    printed = parse(run("metrics", mounted.store).out)
    assert value(printed, "dedupfs_requests_total", operation="create") == 131


@pytest.mark.fuse
def test_a_mount_answers_while_two_hundred_connections_hang(mounted: Mounted) -> None:
    address = metrics_address(mounted.store)
    host, _, port = address.rpartition(":")
    hanging = [socket.socket() for _ in range(200)]
    try:
        for number, each in enumerate(hanging):
            each.setblocking(False)
            each.connect_ex((host, int(port)))
            with suppress(OSError):  # most of them only knock
                each.send(b"GET /" if number % 2 else b"x" * 20_000)
        for number in range(50):
            (mounted.path / f"f{number}").write_bytes(b"x" * 100)
        assert len(os.listdir(mounted.path)) == 50
        assert (mounted.path / "f7").read_bytes() == b"x" * 100
    finally:
        for each in hanging:
            each.close()
    assert value(parse(scrape(address)), "dedupfs_requests_total", operation="create") == 50


@pytest.mark.fuse
def test_the_numbers_of_a_store_and_of_a_dead_mount(run: Run, mounted: Mounted) -> None:
    (mounted.path / "big").write_bytes(random.Random(1).randbytes(FILE_BYTES))
    (daemon,) = live.daemons(mounted.store)
    live.ask(daemon.socket_path, live.Fold())
    run("limit", mounted.store, "1GiB")
    alive = parse(run("metrics", mounted.store).out)
    assert value(alive, "dedupfs_store_limit_bytes") == 1 << 30
    assert value(alive, "dedupfs_store_views") == 1
    assert FILE_BYTES <= value(alive, "dedupfs_store_live_bytes") < 2 * FILE_BYTES
    assert value(alive, "dedupfs_store_disk_bytes") >= FILE_BYTES
    mounted.kill()
    assert value(parse(run("metrics", mounted.store).out), "dedupfs_up") == 0
    run("umount", mounted.path)


def test_garbage_is_told_and_gone_after_gc(run: Run, store_path: Path, data: Path) -> None:
    run("import", store_path, data, "one")
    before = parse(run("metrics", store_path).out)
    assert value(before, "dedupfs_store_snapshots") == 1
    assert value(before, "dedupfs_store_garbage_bytes") == 0
    run("rm", store_path, "one")
    run("gc", store_path)
    after = parse(run("metrics", store_path).out)
    assert value(after, "dedupfs_store_snapshots") == 0
    assert value(after, "dedupfs_store_live_bytes") < value(before, "dedupfs_store_live_bytes")
    assert value(after, "dedupfs_store_garbage_bytes") == 0


def test_a_textfile_is_replaced_whole_or_not_at_all(
    run: Run, store_path: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "collector"
    directory.mkdir()
    path = directory / "dedupfs.prom"
    run("metrics", store_path, "--textfile", path)
    first = path.stat()
    assert first.st_mode & 0o777 == 0o644
    with path.open() as reader:
        run("metrics", store_path, "--textfile", path)
        old = reader.read()
    assert path.stat().st_ino != first.st_ino
    assert parse(old).keys() == parse(path.read_text()).keys()
    assert os.listdir(directory) == ["dedupfs.prom"]
    said = run("metrics", store_path, "--textfile", directory / "no" / "x.prom", code=7)
    assert "cannot write" in said.err
    (directory / "taken").mkdir()
    (directory / "taken" / "x").touch()
    run("metrics", store_path, "--textfile", directory / "taken", code=2)
    assert sorted(os.listdir(directory)) == ["dedupfs.prom", "taken"]


def test_a_textfile_takes_the_place_of_nothing_but_a_file(
    run: Run, store_path: Path, tmp_path: Path
) -> None:
    """By root with --textfile /dev/stdout, the machine would have no /dev/stdout any more."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    before = sorted(os.listdir(tmp_path))
    for name in ("pipe", "link", "dangling"):
        said = run("metrics", store_path, "--textfile", tmp_path / name, code=2)
        assert "not a regular file" in said.err
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "file").read_text() == "kept"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.root
def test_a_full_disk_leaves_the_old_textfile_and_nothing_beside_it(
    run: Run, store_path: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(small)]
    subprocess.run(mount, check=True, timeout=60)
    try:
        (small / "x.prom").write_text("old")
        (small / "filler").write_bytes(bytes(4096))
        said = run("metrics", store_path, "--textfile", small / "x.prom", code=7)
        assert "No space left" in said.err
        assert sorted(os.listdir(small)) == ["filler", "x.prom"]
        assert (small / "x.prom").read_text() == "old"
    finally:
        subprocess.run(["umount", small], check=True, timeout=60)


def test_a_store_that_cannot_be_read_hides_no_other(
    run: Run, store_path: Path, tmp_path: Path
) -> None:
    """Anybody can put anything behind a mount of his; a cron job of root tells the rest."""
    broken = [tmp_path / "broken", tmp_path / "gone"]
    broken[0].mkdir()
    (broken[0] / "dedupfs.json").write_text("{")
    path = tmp_path / "x.prom"
    said = run("metrics", broken[0], store_path, broken[1], "--textfile", path, code=3)
    stores = {dict(labels)["store"] for _, labels in parse(path.read_text(), "store")}
    assert stores == {str(store_path)}
    for one in broken:
        assert sum(str(one) in line for line in said.err.splitlines()) == 1
    path.unlink()
    run("metrics", broken[0], "--textfile", path, code=3)
    assert not path.exists(), "an old file is better than one that says nothing"


def test_a_store_that_is_none_is_refused(run: Run, tmp_path: Path) -> None:
    run("metrics", tmp_path / "nowhere", code=2)


def counters(mountpoint: str) -> MountCounters:
    timed = [1_500_000, *[1] * (len(live.LATENCY_BOUNDS_US) + 1)]
    counted = live.Counted(1, {"read": 7}, {"x_us": 5}, {"y": 6}, {"EIO": 2}, {"read": timed})
    return MountCounters("/s", HOSTILE, mountpoint, counted)


def test_names_that_hold_anything_and_counters_that_nobody_knew() -> None:
    old = MountCounters("/s", "old", "/old", live.Counted(1, {"read": 1}, {"z": 1}, {}))
    other = live.Counted(1, {}, {}, {}, {}, {"read": [5, 1, 2]})
    strange = MountCounters("/s", "strange", "/strange", other)
    text = render([counters("/a"), counters("/b"), old, strange]).decode()
    samples = parse(text, "mountpoint", "view")
    assert "\x1b" not in text, "it may be shown on a terminal"
    view = HOSTILE.replace("\udcff", "\\xff").replace("\x1b", "\\x1b")
    assert value(samples, "dedupfs_x_seconds_total", mountpoint="/a", view=view) == 5e-6
    assert value(samples, "dedupfs_y", mountpoint="/b", view=view) == 6
    assert value(samples, "dedupfs_z_total", mountpoint="/old", view="old") == 1
    counts = "dedupfs_request_seconds_count"
    assert value(samples, counts, mountpoint="/a", view=view, operation="read") == 18
    assert sum(name == counts for name, _ in samples) == 2, "no bounds are made up for others"


@pytest.mark.program("promtool")
def test_promtool_finds_nothing_to_say(run: Run, store_path: Path) -> None:
    texts = [run("metrics", store_path).out, render([counters("/a"), counters("/b")]).decode()]
    for text in texts:
        done = subprocess.run(
            ["promtool", "check", "metrics"],
            input=text,
            text=True,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.fuse
@pytest.mark.unmeasured
def test_the_daemon_that_takes_over_answers_at_the_same_address(tmp_path: Path) -> None:
    pytest.importorskip("pyfuse3")
    with socket.socket() as kept:  # so that nobody else is given this port meanwhile
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{kept.getsockname()[1]}"
        mount = Supervised.start(tmp_path, "mnt", "--metrics", address)
        try:
            (mount.path / "a").touch()
            before = parse(scrape(address))
            mount.kill_daemon()
            (mount.path / "b").touch()
            assert eventually(lambda: mount.running().metrics == address)
            after = parse(scrape(address))
            began = "dedupfs_start_time_seconds"
            assert value(after, began) > value(before, began), "counters begin anew"
            since_ns = mount.running().since_ns
            mount.upgrade()
            assert parse(scrape(address))
            assert mount.running().since_ns == since_ns
            mount.end()
            Supervised.command("check", mount.store)
        finally:
            mount.abandon()


@pytest.mark.fuse
def test_what_is_asked_for_and_cannot_be_had_mounts_nothing(tmp_path: Path) -> None:
    pytest.importorskip("pyfuse3")
    store, path = tmp_path / "store", tmp_path / "mnt"
    path.mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for address, code, text in ((port, 8, "in use"), ("nonsense", 2, "ADDRESS:PORT")):
            done = subprocess.run(
                [sys.executable, "-m", "dedupfs", "mount", store, path, "--metrics", address],
                capture_output=True,
                text=True,
                check=False,
                cwd=REPOSITORY,
                timeout=60,
            )
            assert done.returncode == code
            assert text in done.stderr
    assert not is_mounted(path)


@pytest.mark.fuse
def test_the_dashboard_asks_for_what_is_exported_and_each_name_is_documented(
    run: Run, mounted: Mounted
) -> None:
    run("limit", mounted.store, "1GiB")
    for number in range(64):
        (mounted.path / f"f{number}").write_bytes(b"x")
    text = run("metrics", mounted.store).out
    exported = {name for name, _ in parse(text)}
    dashboard = (REPOSITORY / "docs" / "grafana" / "dedupfs.json").read_text()
    expressions = [
        target["expr"] for panel in json.loads(dashboard)["panels"] for target in panel["targets"]
    ]
    asked = set(re.findall(r"\bdedupfs_\w+", " ".join(expressions)))
    assert len(asked) >= 20
    assert asked <= exported
    documented = (REPOSITORY / "docs" / "cli.md").read_text()
    for family in text_string_to_metric_families(text):
        short = re.sub(r"^dedupfs_(store)?|_seconds$", "", family.name)
        assert short in documented, f"{family.name} is in docs/cli.md"
