"""What data people use reads snapshots, and writes views, through the interface and through fsspec.

The real libraries; one that is not installed is skipped. `./dev` does not install torch: 0.6 GB.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import dedupfs
from tests.api.conftest import BIG
from tests.api.test_fsspec import file_system

fsspec = pytest.importorskip("fsspec")
numpy = pytest.importorskip("numpy")
pytestmark = [
    pytest.mark.unmeasured,
    pytest.mark.filterwarnings("default"),  # those of the libraries
]
LIMIT_S = 120


@pytest.fixture
def data_fs(store: dedupfs.Store) -> Iterator[Any]:
    """A file system on the view ``data``."""
    fs = file_system(store, view="data")
    yield fs
    fs.close()


@pytest.fixture
def fs(store: dedupfs.Store) -> Iterator[Any]:
    """A file system on the snapshots."""
    fs = file_system(store)
    yield fs
    fs.close()


def options(store: dedupfs.Store, **more: str) -> dict[str, str]:
    return {"store": str(store.path), **more}


def columns(rows: int) -> dict[str, Any]:
    rng = numpy.random.default_rng(7)
    return {f"c{number}": rng.standard_normal(rows) for number in range(10)}


def test_numpy_and_safetensors_read_a_snapshot(store: dedupfs.Store, fs: Any) -> None:
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    tensors = {"w": numpy.arange(300_000, dtype=numpy.float32), "b": numpy.ones(3)}
    with store.view("train") as view:
        view.mkdir("step-1")
        view.write_bytes("step-1/model.safetensors", safetensors_numpy.save(tensors))
        with view.open("step-1/w.npy", "wb") as file:
            numpy.save(file, tensors["w"])
        with view.open("step-1/all.npz", "wb") as file:
            numpy.savez(file, **tensors)
        step = view.commit("step-1", path="step-1")
    with step.open("w.npy") as file:
        assert (numpy.load(file) == tensors["w"]).all()
    with step.open("all.npz") as file:
        assert (numpy.load(file)["b"] == tensors["b"]).all()
    loaded = safetensors_numpy.load(step.read_bytes("model.safetensors"))
    assert all((loaded[name] == tensors[name]).all() for name in tensors)
    for cache in ("simplecache", "filecache"):
        url = f"{cache}::dedupfs://step-1/model.safetensors"
        path = fsspec.open_local(url, dedupfs=options(store))
        with pytest.importorskip("safetensors").safe_open(path, "numpy") as opened:
            assert (opened.get_slice("w")[10:20] == tensors["w"][10:20]).all()


def test_pandas_reads_and_writes_csv_and_parquet(store: dedupfs.Store, data_fs: Any) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"a": range(1000), "b": ["x"] * 1000})
    writing = options(store, view="data")
    frame.to_csv("dedupfs://t/t.csv", index=False, storage_options=writing)
    frame.to_parquet("dedupfs://t/t.parquet", storage_options=writing)
    data_fs.commit("t", "t")
    for read, name in ((pandas.read_csv, "t.csv"), (pandas.read_parquet, "t.parquet")):
        assert read(f"dedupfs://t/{name}", storage_options=options(store)).equals(frame)
        assert read(store["t"].open(name)).equals(frame)


def test_one_column_of_a_parquet_file_is_read_without_the_others(
    store: dedupfs.Store, data_fs: Any, fs: Any
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table(columns(100_000))
    with data_fs.open("t/wide.parquet", "wb") as file:
        parquet.write_table(table, file)
    data_fs.commit("t", "t")
    file_bytes = store["t"].stat("wide.parquet").size
    chunks = file_bytes // 4096  # on average (the fixture's store)

    def verified() -> int:
        return store._opened.core.totals()["verified_chunks"]

    before = verified()
    read = parquet.read_table("t/wide.parquet", filesystem=fs, columns=["c3"])
    assert read.equals(table.select(["c3"]))
    assert 0 < verified() - before < chunks / 4
    assert parquet.read_table("t/wide.parquet", filesystem=fs).equals(table)
    assert verified() - before > chunks / 2


def test_a_pyarrow_dataset_is_written_and_read_by_partition(data_fs: Any, fs: Any) -> None:
    dataset = pytest.importorskip("pyarrow.dataset")
    table = pytest.importorskip("pyarrow").table({"day": ["a", "a", "b"], "x": [1, 2, 3]})
    keys = {"format": "parquet", "partitioning": ["day"]}
    dataset.write_dataset(table, "days", filesystem=data_fs, **keys)
    data_fs.commit("days", "days")
    found = dataset.dataset("days", filesystem=fs, **keys)
    assert found.to_table(filter=dataset.field("day") == "a").to_pydict()["x"] == [1, 2]
    assert found.count_rows() == 3


def test_zarr_arrays_are_written_and_read(store: dedupfs.Store, data_fs: Any) -> None:
    zarr = pytest.importorskip("zarr")
    writing = options(store, view="data")
    values = numpy.arange(100_000, dtype="f4").reshape(1000, 100)
    group = zarr.open_group("dedupfs://z", mode="w", storage_options=writing)
    group.create_array("a", shape=values.shape, chunks=(100, 100), dtype="f4")[:] = values
    data_fs.commit("z", "z")
    back = zarr.open_group("dedupfs://z", mode="r", storage_options=options(store))
    assert (back["a"][200:300] == values[200:300]).all()


def test_a_hugging_face_data_set_is_saved_and_loaded(
    store: dedupfs.Store, data_fs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # offline mode refuses every URL
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"line {number}" for number in range(1000)], "label": list(range(1000))}
    made = datasets.Dataset.from_dict(rows)
    writing, reading = options(store, view="data"), options(store)
    made.save_to_disk("dedupfs://train/saved", storage_options=writing)
    made.to_parquet("dedupfs://train/all.parquet", storage_options=writing)
    data_fs.commit("train", "train")
    back = datasets.load_from_disk("dedupfs://train/saved", storage_options=reading)
    assert back.to_dict() == rows
    given = {
        "path": "parquet",
        "data_files": "dedupfs://train/all.parquet",
        "split": "train",
        "cache_dir": str(tmp_path / "cache"),
        "storage_options": reading,
    }
    assert datasets.load_dataset(**given).to_dict() == rows
    streamed = datasets.load_dataset(**given, streaming=True)
    assert [row["label"] for row in streamed] == rows["label"]


def test_torch_saves_and_loads(data_fs: Any) -> None:
    torch = pytest.importorskip("torch")
    with data_fs.open("t/t.pt", "wb") as file:
        torch.save({"w": torch.ones(1000)}, file)
    with data_fs.open("t/t.pt") as file:
        assert torch.load(file, weights_only=True)["w"].sum() == 1000


class Samples:
    """A data set as training code has it: opened in the parent, read in its workers."""

    def __init__(self, fs: Any, snapshot: dedupfs.Snapshot) -> None:
        self.fs = fs
        self.snapshot = snapshot

    def __getitem__(self, number: int) -> tuple[bytes, bytes]:
        start = number * 1000
        with self.snapshot.open("a/b/big") as file:
            file.seek(start)
            return self.fs.cat_file("one/a/b/big", start, start + 1000), file.read(1000)


samples: Samples | None = None


def _use(given: Samples | None) -> None:
    global samples  # noqa: PLW0603  as workers of a pool keep what they are given
    samples = given or samples


def _sample(number: int) -> tuple[bytes, bytes]:
    assert samples is not None
    return samples[number]


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_worker_processes_read_what_their_parent_opened(
    way: str, store: dedupfs.Store, fs: Any
) -> None:
    """As a torch DataLoader has it: inherited when it forks, pickled when it spawns."""
    given = Samples(fs, store["one"])
    assert given[0][0] == BIG[:1000]
    expected = [(BIG[start : start + 1000],) * 2 for start in range(0, 30_000, 1000)]
    with multiprocessing.get_context(way).Pool(2, _use, (given,)) as pool:
        assert pool.map_async(_sample, range(30)).get(LIMIT_S) == expected
    assert given[1] == expected[1]


def test_threads_share_the_view_that_each_has_its_own_file_system_on(
    store: dedupfs.Store, data_fs: Any
) -> None:
    """fsspec keeps an object for each thread, and zarr wants one for each option."""

    def write(number: int) -> None:
        mine = fsspec.filesystem("dedupfs", store=str(store.path), view="data")
        assert mine is not data_fs
        mine.pipe_file(f"shared/{number}", bytes([number]) * 1000)
        mine.close()

    with ThreadPoolExecutor(3) as pool:
        for job in [pool.submit(write, number) for number in range(6)]:
            job.result(LIMIT_S)
    assert data_fs.cat("shared/5") == b"\5" * 1000
    assert len(data_fs.ls("shared")) == 6
