"""A batch on a cluster of several nodes, one of which dies in the middle: no picture is lost, all are the same to the byte."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from studio.batch.executors.ray_cluster import FILES_VARIABLE, LOOPBACK_ONLY, RayExecutor
from studio.batch.results import read_lines
from studio.batch.runner import BatchOptions, run_batch
from tests.proof.conftest import SIZES, note
from tests.support.batches import pictures, run, write_batch

for _name, _value in (LOOPBACK_ONLY | {"RAY_USAGE_STATS_ENABLED": "0"}).items():
    os.environ.setdefault(_name, _value)  # Ray reads them when it is imported
ray = pytest.importorskip("ray", reason="needs the ray extra")
NUM_NODES = SIZES.ray_nodes

MANY = """
defaults: {base: base, steps: 2, size: 32}
jobs:
  - {prompt: a cat, adapters: [one.safetensors], num_images: 24}
  - {prompt: a dog, adapters: ["two.safetensors:0.5"], num_images: 6, seed: 5}
  - {prompt: a cat and a dog, num_images: 2, strategy: switch, entries: [{adapter: one.safetensors}, {adapter: two.safetensors}]}
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Nodes of one processor each, on loopback, with one folder for files that come by hash."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(FILES_VARIABLE, str(tmp_path / "node-files"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    started = Cluster()
    started.add_node(num_cpus=0, include_dashboard=False)
    nodes = [started.add_node(num_cpus=1) for _ in range(NUM_NODES)]
    ray.init(address=started.address, log_to_driver=False, logging_level="error")
    try:
        yield started, nodes
    finally:
        ray.shutdown()
        started.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_node_that_dies_loses_no_picture(cluster: Any, tmp_path: Path):
    started, nodes = cluster
    (tmp_path / "batch").mkdir()
    file = write_batch(tmp_path / "batch", MANY)
    assert run(file, tmp_path / "here").done_now == 32
    killed = threading.Event()

    def kill_one() -> None:
        results = tmp_path / "there" / "results.jsonl"
        while not results.is_file() or len(read_lines(results)) < 4:
            time.sleep(0.05)
        started.remove_node(nodes[0], allow_graceful=False)
        killed.set()

    killer = threading.Thread(target=kill_one)
    killer.start()
    options = BatchOptions(file=file, output=tmp_path / "there", batch_size=4, threads=1, reports=False)
    outcome = run_batch(options, lambda settings: RayExecutor(settings, shares_files=False), argv=())
    killer.join(60)
    there, here = pictures(tmp_path / "there"), pictures(tmp_path / "here")
    same = sum(there.get(name) == data for name, data in here.items() if name.endswith(".png"))
    note("ray", nodes=NUM_NODES, killed=1, pictures=outcome.done_now, failed=len(outcome.failed), the_same_to_the_byte=same)
    assert killed.is_set() and (outcome.done_now, outcome.failed) == (32, {})
    assert there == here
    fetched = {path.parent.name for path in (tmp_path / "node-files").glob("*/*/*.safetensors")}
    assert len(fetched) >= 2  # both adapters, by their hashes
