"""Peak memory of a training step with SaRA, a LoRA and full fine-tuning: `python -m studio.evals.sara_memory`.

One process per arm, on a UNet of SD1.5's structure. What counts is what an arm needs beyond "idle", which makes the same UNet
and runs it once without gradients. The control is an arm measured twice.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from studio.evals.tables import Cell, Table

DENSITIES = {"SaRA 1 %": 0.01, "SaRA 10 %": 0.1, "SaRA 10 % of all tensors": 0.1}
ARMS = ("idle", "LoRA rank 16", *DENSITIES, "control: SaRA 10 %", "full fine-tuning")
STEPS = 3


def run_arm(arm: str, scale: int, checkpointing: bool) -> None:
    """Train `STEPS` steps in this process, and print its peak bytes and how many numbers trained."""
    import torch

    from studio.evals.peers_arms import Inputs, Size15, make_unet
    from studio.evals.trainers_worker import peak_bytes
    from studio.pipelines.adapters import Route, new_lora, patched
    from studio.pipelines.families.targets import ATTENTION, FEED_FORWARD, any_of
    from studio.training.sara import PackedWeights, SelectionRule, select

    size = Size15(channels=(64 * scale, 128 * scale, 256 * scale, 256 * scale))
    unet, inputs = make_unet(size), Inputs.make(size)
    if checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()

    def loss() -> torch.Tensor:
        answer: torch.Tensor = unet(inputs.latents, inputs.timesteps, inputs.prompt_embeds, return_dict=False)[0]
        return (answer - inputs.noise).square().mean()

    parameters: list[torch.Tensor] = []
    context: AbstractContextManager[object] = nullcontext()
    after: Callable[[torch.optim.Optimizer], None] = lambda optimizer: None  # noqa: E731
    name = arm.removeprefix("control: ")
    if name in DENSITIES:
        targets = None if "all tensors" in name else any_of(ATTENTION, FEED_FORWARD)
        packed = PackedWeights(select("unet", unet, SelectionRule(density=DENSITIES[name]), targets), [unet])
        packed.attach()
        parameters, after = list(packed.parameters()), packed.keep_settled_through
    elif arm == "LoRA rank 16":
        adapter = new_lora({"unet": unet}, {"unet": any_of(ATTENTION, FEED_FORWARD)}, 16, 16.0)
        parameters, context = list(adapter.named_tensors().values()), patched({"unet": unet}, [Route(adapter)])
    elif arm == "full fine-tuning":
        parameters = list(unet.requires_grad_(True).parameters())
    with context:
        if not parameters:
            with torch.no_grad():
                loss()
        else:
            optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
            after(optimizer)
            for _ in range(STEPS):
                loss().backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    print(peak_bytes(), sum(parameter.numel() for parameter in parameters))


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m studio.evals.sara_memory", description=__doc__)
    parser.add_argument("--scale", type=int, default=1, help="1: 37 million parameters; 2: four times as many")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.arm is not None:
        run_arm(options.arm, options.scale, options.gradient_checkpointing)
        return
    flags = ["--scale", str(options.scale), *(["--gradient-checkpointing"] if options.gradient_checkpointing else [])]
    rows: list[tuple[Cell, ...]] = []
    idle = 0
    for arm in ARMS:
        command = [sys.executable, "-m", "studio.evals.sara_memory", "--arm", arm, *flags]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peak, trained = (int(number) for number in output.split()[-2:])
        idle = idle or peak
        rows.append((arm, f"{trained:,}", f"{peak / 2**20:,.0f}", f"{(peak - idle) / 2**20:,.0f}"))
    title = "Peak memory of a training step" + (", with gradient checkpointing" if options.gradient_checkpointing else "")
    print(Table(title, ("arm", "numbers that train", "peak MiB", "beyond idle, MiB"), tuple(rows)).text())


if __name__ == "__main__":
    main()
