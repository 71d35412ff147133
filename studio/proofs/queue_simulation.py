"""`python -m studio.proofs.queue_simulation`: how many GPUs and what cache a thousand users need.

Three tables: GPUs for pictures, until 95 % of the requests are done in time; the cache on each GPU, at that number; GPUs for
trainings. Service times are measured on this machine, on the embedded base, with `--service measured`; otherwise they are the
assumptions that the table names, and any of them can be given: this says what follows from figures, not what they are.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from studio.evals.queue_model import Load, Plant, Result, Service, simulate, simulate_trainings
from studio.evals.tables import Table, write_table
from studio.pipelines.errors import UserError

ASSUMED_SDXL = Service(
    source="assumed: SDXL, 1024x1024, 30 steps, bfloat16, a data-centre GPU; LoRA of rank 16",
    seconds_fixed=0.5,
    seconds_per_row=2.0,
    adapter_bytes=100e6,
    device_bytes_per_second=10e9,
    disk_bytes_per_second=1e9,
    training_seconds=1800.0,
)
CACHES = ((0, 0), (8, 100), (32, 1000), (128, 1000), (128, 6000), (512, 6000))
"""Adapters on each GPU, and in each machine's memory."""

MAX_GPUS = 512


def measured_service(steps: int = 30) -> Service:
    """The embedded base on this machine: forwards of one and eight rows with adapters of their own, an adapter's file read."""
    import torch

    from studio.pipelines.adapters import Route, load_adapter
    from studio.pipelines.base_model import load_base
    from studio.pipelines.mixed_batch import MixedRow, SharedShape, draw_mixed
    from studio.proofs.batch_speed import write_inputs

    base = load_base()
    with tempfile.TemporaryDirectory() as place:
        write_inputs(Path(place), steps=steps, num_adapters=2)
        files = sorted(Path(place).glob("*.safetensors"))
        reading = _seconds(lambda: [load_adapter(path) for path in files]) / len(files)
        routes = [(Route(load_adapter(path)),) for path in files]
        size = files[0].stat().st_size

    def draw(count: int) -> Callable[[], object]:
        rows = [MixedRow(prompt="a red cat", seed=number, routes=routes[number % 2]) for number in range(count)]
        return lambda: draw_mixed(base, rows, SharedShape(steps=steps))

    one, eight = _seconds(draw(1)), _seconds(draw(8))
    per_row = max((eight - one) / 7, 1e-6)
    return Service(
        source=f"measured here: the embedded base, 96x96, {steps} steps, float32, {torch.get_num_threads()} threads; no GPU; "
        f"a training as given",
        seconds_fixed=max(one - per_row, 0.0),
        seconds_per_row=per_row,
        adapter_bytes=float(size),
        device_bytes_per_second=10e9,
        disk_bytes_per_second=size / reading,
        training_seconds=600.0,
    )


def needed_gpus(load: Load, service: Service, plant: Plant, target_seconds: float, *, seed: int = 0) -> list[tuple[int, Result]]:
    """Results for growing numbers of GPUs, the last one the first that is quick enough.

    Raises:
        UserError: a single request takes longer than that, or more GPUs than `MAX_GPUS` would be needed.
    """
    alone = service.seconds_fixed + service.seconds_per_row * load.pictures_per_request
    if target_seconds <= alone:
        raise UserError(f"A request takes {alone:.1f} s even with nobody before it; the target should be more.")
    rows_per_second = plant.max_rows / (service.seconds_fixed + plant.max_rows * service.seconds_per_row)
    least = max(1, int(load.requests_per_second * load.pictures_per_request / rows_per_second))
    found = []
    for count in range(least, MAX_GPUS + 1):
        found.append((count, simulate(load, service, replace(plant, gpus=count), seed=seed)))
        if found[-1][1].p95_seconds <= target_seconds:
            return found
    raise UserError(f"Even {MAX_GPUS} GPUs are not enough for so many requests.")


def tables(
    load: Load, service: Service, plant: Plant, *, target_seconds: float, training_wait: float, seed: int = 0
) -> list[Table]:
    """The three tables."""
    sized = needed_gpus(load, service, plant, target_seconds, seed=seed)
    gpus = sized[-1][0]
    note = f"service times {service.source}"
    crowd = (
        f"{load.users} users, {load.pictures_per_day:g} pictures a day each, {load.peak_share:.0%} of them in the busiest hour: "
        f"{load.requests_per_second * load.pictures_per_request:.2f} pictures/s"
    )
    columns = ("median s", "95 % s", "busy", "on the GPU", "in memory", "rows")
    first = Table(
        title=f"GPUs for pictures: 95 % of the requests done within {target_seconds:g} s take {gpus}",
        columns=("GPUs", *columns),
        rows=tuple((count, *_cells(result)) for count, result in sized[-6:]),
        notes=(crowd, note, "on the GPU, in memory: share of adapter uses found there, or at least in the machine's memory"),
    )
    caches = [
        (
            sizes,
            simulate(load, service, replace(plant, gpus=gpus, cached_on_device=sizes[0], cached_in_memory=sizes[1]), seed=seed),
        )
        for sizes in CACHES
    ]
    best = min(result.p95_seconds for _, result in caches)
    enough = next(sizes for sizes, result in caches if result.p95_seconds <= 1.05 * best)
    adapters = load.users * load.adapters_per_user + load.shared_adapters
    gigabytes = service.adapter_bytes / 1e9
    second = Table(
        title=f"Caches of {gpus} GPUs: {enough[0]} adapters on each and {enough[1]} in memory are within 5 % of the best",
        columns=("on each GPU", "GB", "in memory", "GB of it", *columns),
        rows=tuple((sizes[0], sizes[0] * gigabytes, sizes[1], sizes[1] * gigabytes, *_cells(result)) for sizes, result in caches),
        notes=(
            f"{adapters} adapters in all; {load.shared_share:.0%} of the requests use one of {load.shared_adapters} shared ones",
        ),
    )
    rows: list[tuple[int, float, float]] = []
    count = max(1, int(load.trainings_per_second * service.training_seconds))
    while not rows or rows[-1][1] > training_wait / 60:
        wait = simulate_trainings(load, service, count, seed=seed)
        rows.append((count, wait / 60, min(1.0, load.trainings_per_second * service.training_seconds / count)))
        count += 1
    third = Table(
        title=f"GPUs for trainings: 95 % begin within {training_wait / 60:g} min with {rows[-1][0]}",
        columns=("GPUs", "95 % wait, min", "busy"),
        rows=tuple(rows[-6:]),
        notes=(
            f"{load.trainings_per_day:g} trainings a user and day of {service.training_seconds / 60:g} min, at the peak's rate",
        ),
    )
    return [first, second, third]


def _cells(result: Result) -> tuple[float, ...]:
    return (result.median_seconds, result.p95_seconds, result.busy, result.device_hits, result.memory_hits, result.rows)


def _seconds(call: Callable[[], object], rounds: int = 3) -> float:
    """CPU seconds at best."""
    call()
    found = []
    for _ in range(rounds):
        begun = time.process_time()
        call()
        found.append(time.process_time() - begun)
    return min(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="How many GPUs and what cache so many users need.")
    parser.add_argument("--service", choices=("sdxl", "measured"), default="sdxl", help="assumed for SDXL, or measured here")
    parser.add_argument("--target-seconds", type=float, default=30.0, help="95 %% of the requests done within")
    parser.add_argument("--training-wait", type=float, default=1800.0, help="95 %% of the trainings begun within, in seconds")
    parser.add_argument("--output", type=Path, default=None, help="folder for the tables")
    parser.add_argument("--seed", type=int, default=0)
    for kind, title in ((Load, "users"), (Plant, "machines"), (Service, "service times")):
        group = parser.add_argument_group(title)
        for each in fields(kind):
            if each.name not in ("source", "gpus"):
                group.add_argument(f"--{each.name.replace('_', '-')}", type=float, default=None)
    chosen = vars(parser.parse_args(arguments))

    def given(kind: type) -> dict[str, float | int]:
        names = {each.name: each for each in fields(kind)}
        found = {name: chosen[name] for name in names if chosen.get(name) is not None}
        return {name: int(value) if names[name].type == "int" else value for name, value in found.items()}

    service = ASSUMED_SDXL if chosen["service"] == "sdxl" else measured_service()
    service = replace(service, **given(Service))  # type: ignore[arg-type]
    if changed := given(Service):
        service = replace(service, source=f"{service.source}; given: {', '.join(changed)}")
    load, plant = replace(Load(), **given(Load)), replace(Plant(gpus=1), **given(Plant))  # type: ignore[arg-type]
    for number, table in enumerate(
        tables(
            load,
            service,
            plant,
            target_seconds=chosen["target_seconds"],
            training_wait=chosen["training_wait"],
            seed=chosen["seed"],
        )
    ):
        print(table.text())
        if chosen["output"] is not None:
            write_table(table, chosen["output"], ("gpus", "cache", "trainings")[number])


if __name__ == "__main__":
    main()
