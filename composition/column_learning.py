"""Learning ZipLoRA's coefficients (Shah et al. 2023, arXiv 2311.13600): one for each input column of each change of each layer.

    min Σₙ mean‖ε(xₙ; Σₖ ΔWₖ diag(mₖ)) − ε(xₙ; ΔWₙ)‖² + λ · mean over pairs of |mᵢ ⊙ mⱼ|

so that together the adapters do on each one's pictures what it did alone, while no two of them use the same columns. The paper
takes xₙ from the adapters' training pictures, which nobody has who got a file; here they are latents on the way to a picture that
the adapter draws itself, where its own predictions are known from the drawing. The paper is for a content and a style; with the
penalty over pairs there may be any number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.composition.columns import ColumnScaledPatch, scalable, with_columns
from studio.composition.merged import concept_prompt
from studio.composition.scene import Scene
from studio.composition.strategy import own_pass
from studio.composition.trajectories import Seen, drawing_steps
from studio.pipelines.adapters import Adapter, ParameterPath, Patch, Route, find_module, patched
from studio.pipelines.base_model import TextCondition
from studio.pipelines.denoising import UNetDenoiser
from studio.pipelines.denoising.denoiser import DenoiserCall

Coefficients = dict[ParameterPath, Tensor]


@dataclass(frozen=True, eq=False)
class Example:
    """What the adapters together shall predict: `seen.predictions[0]`, at the text that all of them make."""

    seen: Seen
    text: TextCondition


@dataclass(frozen=True, eq=False)
class Learned:
    """What came of it.

    Attributes:
        coefficients: of each adapter. losses: at every step, penalty included; empty if nothing was learned.
    """

    coefficients: tuple[Coefficients, ...]
    losses: tuple[float, ...]


class ColumnLearner:
    """The adapters of a scene with coefficients that train, all 1 at first.

    Attributes:
        coefficients: of each concept. penalty: λ.
    """

    def __init__(self, scene: Scene, penalty: float) -> None:
        self.scene = scene
        self.penalty = penalty
        self.components = scene.base.components()
        self.patches: list[dict[ParameterPath, Patch]] = []
        self.coefficients: list[Coefficients] = []
        for concept in scene.concepts:
            found: dict[ParameterPath, Patch] = {}
            for path, patch in concept.adapter.patches.items():
                ready = scalable(patch, path, self.components, concept.title) if path.component == "unet" else None
                if ready is not None:
                    found[path] = ready
            self.patches.append(found)
            self.coefficients.append({path: self._ones(path) for path in found})

    def _ones(self, path: ParameterPath) -> Tensor:
        module = find_module(self.components[path.component], path.module)
        assert module is not None
        weight = module.weight
        assert isinstance(weight, Tensor)
        return torch.ones(weight.shape[1], device=self.scene.base.device, requires_grad=True)

    def routes(self) -> list[Route]:
        """All adapters' parts in the denoiser, with the coefficients as they train."""
        routes = []
        for concept, patches, own in zip(self.scene.concepts, self.patches, self.coefficients, strict=True):
            scaled = {path: ColumnScaledPatch(patch, own[path]) for path, patch in patches.items()}
            rest = {p: patch for p, patch in concept.adapter.patches.items() if p.component == "unet" and p not in scaled}
            routes.append(Route(Adapter(concept.adapter.info, {**rest, **scaled}), concept.strength))
        return routes

    def similarity(self) -> Tensor:
        """mean |mᵢ ⊙ mⱼ| over layers that both change, and over pairs; 0 where there is no such layer."""
        total, count = torch.zeros((), device=self.scene.base.device), 0
        for path in dict.fromkeys(path for own in self.coefficients for path in own):
            sizes = torch.stack([own[path].abs() for own in self.coefficients if path in own])
            # Σ over pairs of |mᵢ||mⱼ|, without writing out the pairs
            total = total + (sizes.sum(dim=0).square() - sizes.square().sum(dim=0)).mean() / 2
            count += len(sizes) * (len(sizes) - 1) // 2
        return total / max(1, count)

    def fit(self, example: Example) -> Tensor:
        """mean‖ε_together − ε_alone‖² at one example; open `routes()` around it."""
        request = self.scene.request
        call = DenoiserCall(
            latents=example.seen.latents,
            timestep=example.seen.timestep,
            condition=example.text,
            height=request.height,
            width=request.width,
        )
        prediction = UNetDenoiser(self.scene.base).predict(call).prediction
        assert prediction is not None
        return F.mse_loss(prediction.float(), example.seen.predictions[0])

    def learn(self, examples: Sequence[Sequence[Example]], num_steps: int, learning_rate: float, seed: int = 0) -> Learned:
        """Take `num_steps` steps of Adam, each with one example of every adapter."""
        parameters = [tensor for own in self.coefficients for tensor in own.values()]
        if not parameters or num_steps == 0:
            return Learned(tuple(self.coefficients), ())
        optimizer = torch.optim.Adam(parameters, lr=learning_rate)
        generator = torch.Generator().manual_seed(seed)
        losses = []
        with torch.enable_grad(), patched(self.components, self.routes()):
            for step in range(num_steps):
                if step % len(examples[0]) == 0:
                    order = torch.randperm(len(examples[0]), generator=generator).tolist()
                losses.append(self._backward([own[order[step % len(order)]] for own in examples], parameters))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return Learned(tuple({p: t.detach() for p, t in own.items()} for own in self.coefficients), tuple(losses))

    def _backward(self, batch: Sequence[Example], parameters: Sequence[Tensor]) -> float:
        """Gradients of the whole loss into the parameters, an example at a time; the loss."""
        total = 0.0
        for part in [self.penalty * self.similarity(), *(self.fit(example) for example in batch)]:
            if not part.requires_grad:
                continue
            total += float(part.detach())
            gradients = torch.autograd.grad(part, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return total


@torch.no_grad()
def examples_of(scene: Scene, num_steps: int) -> list[list[Example]]:
    """For each concept the steps of a picture that it draws alone, with the text that all adapters make of its prompt."""
    found = []
    for index, concept in enumerate(scene.concepts):
        prompt = concept_prompt(scene, concept)
        alone = replace(concept, entry=concept.entry.model_copy(update={"prompt": prompt}))
        text = scene.condition(prompt, scene.concepts)
        found.append([Example(seen, text) for seen in drawing_steps(scene, [own_pass(scene, alone)], num_steps, seed=index)])
    return found


def learned_adapters(scene: Scene, learner_patches: Sequence[Mapping[ParameterPath, Patch]], learned: Learned) -> list[Adapter]:
    """The scene's adapters with their coefficients in them; as they were if nothing was learned."""
    if not learned.losses:
        return [concept.adapter for concept in scene.concepts]
    found = []
    for concept, patches, own in zip(scene.concepts, learner_patches, learned.coefficients, strict=True):
        scaled = {path: with_columns(patch, own[path]) for path, patch in patches.items()}
        ordered = {path: scaled.get(path, patch) for path, patch in concept.adapter.patches.items()}
        info = concept.adapter.info
        found.append(Adapter(replace(info, type=Adapter(info, ordered).type), ordered))
    return found
