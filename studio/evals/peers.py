"""`make bench-trainers`: our training step against the usual libraries' own, on one thread, in CPU time.

Writes `peers.txt` (and .csv, .json) and every raw measurement, also of sessions that the control threw away, to `raw.json`.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from studio.evals.peers_arms import (
    FACTOR,
    RANK,
    SMALL,
    Inputs,
    Size15,
    TrainingArm,
    base_arms,
    copies,
    copy_lora,
    make_unet,
    our_arm,
    peer_arm,
    peer_lokr_config,
    peer_lora_config,
)
from studio.evals.tables import Table, write_table
from studio.kernels.bench.interleaved import Arm, Session, measure
from studio.pipelines.files import atomic_write_json
from studio.training.config import RunConfig
from studio.training.hardware import make_accelerator
from studio.training.methods import METHODS

CONTROL = ("base forward again", "base forward")
OUR_LORA, PEER_LORA = "our LoRA step", "diffusers' LoRA step"
OUR_KRON, PEER_KRON = "our Kronecker step", "PEFT's LoKr step"
KRONECKER_METHOD = "diffusekrona"
LIBRARIES = ("torch", "diffusers", "peft", "accelerate")
SAME_LOSS = 1e-4
"""Largest relative difference of the losses of two LoRA steps that do the same work."""


def make_arms(size: Size15) -> dict[str, TrainingArm]:
    """Every training step there is to compare; the Kronecker ones once the method is registered."""
    unet, inputs = make_unet(size), Inputs.make(size)
    accelerator = make_accelerator(RunConfig(device="cpu", mixed_precision="no"))
    mine, theirs = copies(unet, 2)
    ours, trainable = our_arm(OUR_LORA, "dreambooth-lora", mine, inputs, accelerator, {"adapter.rank": RANK})
    peer = peer_arm(PEER_LORA, peer_lora_config(), theirs, inputs, accelerator)
    copy_lora(trainable, theirs)
    arms = [ours, peer]
    if any(method.name == KRONECKER_METHOD for method in METHODS):
        mine, theirs = copies(unet, 2)
        factors: dict[str, object] = {"krona.factors": f"{FACTOR}x{FACTOR}"}
        arms.append(our_arm(OUR_KRON, KRONECKER_METHOD, mine, inputs, accelerator, factors)[0])
        arms.append(peer_arm(PEER_KRON, peer_lokr_config(), theirs, inputs, accelerator))
    return {arm.name: arm for arm in arms}


def check_same_work(arms: Mapping[str, TrainingArm], steps: int = 3) -> float:
    """Warm up, and compare the losses of the two LoRA steps from the same values: their largest relative difference.

    Raises:
        RuntimeError: they do not do the same work, so that their times mean nothing.
    """
    for arm in arms.values():
        for _ in range(steps):
            arm.step()
    pairs = zip(arms[OUR_LORA].losses, arms[PEER_LORA].losses, strict=True)
    difference = max(abs(a - b) / b for a, b in pairs)
    if difference > SAME_LOSS:
        losses = f"{arms[OUR_LORA].losses} and {arms[PEER_LORA].losses}"
        raise RuntimeError(f"the two LoRA steps do not do the same work: their losses are {losses}")
    return difference


def run_bench(output: Path, *, size: Size15 = SMALL, rounds: int = 15, attempts: int = 3) -> Table:
    """Measure, and write the table and the raw records into `output`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        arms = make_arms(size)
        difference = check_same_work(arms)
        timed: dict[str, Arm] = {name: arm.step for name, arm in arms.items()}
        timed.update(base_arms(make_unet(size), Inputs.make(size)))
        sessions: list[Session] = []
        session = measure(timed, CONTROL, rounds=rounds, attempts=attempts, on_session=sessions.append, on_round=_say)
    finally:
        torch.set_num_threads(threads)
    facts = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "unet": {"channels": size.channels, "latent_side": size.latent_side},
        "rank": RANK,
        "factor": FACTOR,
        "parameters": {name: arm.num_parameters for name, arm in arms.items()},
        "largest_loss_difference": difference,
        "sessions": [_as_json(each) for each in sessions],
    }
    output.mkdir(parents=True, exist_ok=True)
    atomic_write_json(output / "raw.json", facts)
    table = peers_table(session, arms)
    write_table(table, output, "peers")
    return table


def peers_table(session: Session, arms: Mapping[str, TrainingArm]) -> Table:
    """Control first, then each of our steps against its peer."""
    pairs = [CONTROL, *(pair for pair in ((OUR_LORA, PEER_LORA), (OUR_KRON, PEER_KRON)) if pair[0] in arms)]
    rows = []
    for ours, theirs in pairs:
        found = session.ratio(ours, theirs)
        seconds = sorted(session.seconds[theirs])[len(session.seconds[theirs]) // 2]
        rows.append((ours, theirs, found.paired, found.cpu, found.minimum, seconds, len(session.seconds[ours])))
    state = "holds" if session.valid else "does NOT hold: these figures are not to be used"
    return Table(
        title="A training step against the usual libraries', CPU time on one thread",
        columns=("step", "against", "paired median", "CPU", "min", "theirs, s", "rounds"),
        rows=tuple(rows),
        notes=(
            "ratios; below 1 is quicker. paired: median of the ratio within a round. CPU: of the sums. min: of the quickest",
            f"the control (the same thing twice, .97 to 1.03) {state}",
        ),
    )


def _as_json(session: Session) -> dict[str, Any]:
    return {"kept": session.valid, "control": session.control.paired, "cpu_seconds": dict(session.seconds)}


def _say(done: int, total: int) -> None:
    print(f"round {done} of {total}", file=sys.stderr, flush=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Our training step against the usual libraries' own.")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/trainers"), help="folder of table and raw records")
    parser.add_argument("--rounds", type=int, default=15, help="how often the arms take turns")
    parser.add_argument("--attempts", type=int, default=3, help="sessions at most, until the control holds")
    chosen = parser.parse_args()
    print(run_bench(chosen.output, rounds=chosen.rounds, attempts=chosen.attempts).text())


if __name__ == "__main__":
    main()
