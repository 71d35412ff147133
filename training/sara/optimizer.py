"""SaRA on any torch model, in the few lines the paper promises: an optimizer that takes the model."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from studio.pipelines.adapters import Adapter, AdapterInfo, load_adapter, merged_parameters
from studio.pipelines.adapters.paths import find_module
from studio.pipelines.adapters.serialization.sparse_layers import is_exact_part, write_sparse
from studio.pipelines.errors import ConfigError
from studio.pipelines.families.sara import sara_learning_rate
from studio.pipelines.files import atomic_save_safetensors
from studio.training.sara.extraction import sparse_patches
from studio.training.sara.nuclear import NuclearNorm
from studio.training.sara.packed import PackedWeights
from studio.training.sara.selection import SelectionRule, select

COMPONENT = "model"


class AdamW(torch.optim.AdamW):
    """AdamW on the small weights of `model`; all its other parameters are frozen.

    The model trains in place: use it as always. `close()` gives the original weights back, and `keep()` leaves the trained
    ones in; both free the model. In a `with` block it is closed at the end.

    Attributes:
        weights: the packed weights; `weights.state_dict()` beside `state_dict()` is all that resuming needs.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        threshold: float | None = None,
        density: float | None = None,
        lr: float | None = None,
        targets: str | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        switch_step: int | None = None,
        nuclear: NuclearNorm | None = None,
        seed: int = 0,
    ) -> None:
        """Select the weights and take hold of the model.

        Args:
            threshold, density: which weights train: all below the threshold, or this share of each tensor, the smallest.
            lr: by default the paper's 1e-3 · exp(−350 θ), for a threshold up to 5e-3.
            targets: regular expression on module names; by default every parameter of the model.
            switch_step: after how many steps to select again (the paper: half of all); None never does.
            nuclear: of `regularizer()`. seed: of its random choices.

        Raises:
            ConfigError: nothing is selected, or no learning rate is known.
        """
        rule = SelectionRule(threshold=threshold, density=density)
        rate = lr if lr is not None or threshold is None else sara_learning_rate(threshold)
        if rate is None:
            raise ConfigError("SaRA's rule gives a learning rate for thresholds up to 5e-3 only; give lr")
        self.model = model
        self.weights = PackedWeights(select(COMPONENT, model, rule, targets), [model])
        self._switch_step, self._seed = switch_step, seed
        self._nuclear = NuclearNorm() if nuclear is None else nuclear
        self._flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        super().__init__([self.weights.delta], lr=rate, betas=betas, eps=eps, weight_decay=weight_decay)
        self.weights.keep_settled_through(self)
        self.register_step_post_hook(lambda *_: self._select_again())
        model.requires_grad_(False)
        self.weights.attach()

    @property
    def num_steps(self) -> int:
        """How many steps were done, those before resuming included."""
        step = self.state.get(self.weights.delta, {}).get("step", 0)
        return int(step)

    def regularizer(self) -> Tensor:
        """λ · ‖P ⊙ M‖_*, to add to the loss; zero in steps in which it is not due."""
        term = self._nuclear.term([self.weights], self.num_steps, self._seed)
        return torch.zeros((), device=self.weights.delta.device) if term is None else term

    def adapter(self, name: str = "sara") -> Adapter:
        """What was learned, as an adapter of the component "model"; a detached copy."""
        return Adapter(AdapterInfo(name=name, type="sparse"), sparse_patches(self.weights))

    def save(self, path: Path | str, dtype: torch.dtype = torch.float16) -> None:
        """Write what was learned: about 3 bytes a trained weight. `load_into` puts it into a fresh copy of the model."""
        content = write_sparse(self.adapter(), with_positions=True)
        tensors = {key: tensor if is_exact_part(key) else tensor.to(dtype) for key, tensor in content.tensors.items()}
        atomic_save_safetensors(Path(path), tensors, {"format": "pt", **content.needed_metadata})

    def keep(self) -> None:
        """Free the model with the trained weights in it."""
        trained = {target: self.weights.values(target).detach() for target in self.weights}
        self.close()
        with torch.no_grad():
            for target, values in trained.items():
                parameter = target.selected.parameter
                parameter.put_(target.selected.indices.to(torch.int64), values.to(parameter.dtype))

    def close(self) -> None:
        """Free the model with its original weights, to the bit."""
        if self.weights.is_attached:
            self.weights.detach()
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(self._flags[name])

    def _select_again(self) -> None:
        if self.num_steps == self._switch_step:
            self.weights.reselect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def load_into(model: nn.Module, path: Path | str, strength: float = 1.0) -> None:
    """Add what `AdamW.save` wrote to the weights of `model`, times `strength`.

    Raises:
        AdapterMismatchError: the model is not the one it was trained on; its message names the tensor.
        AdapterFileError: the file is damaged.
    """
    adapter = load_adapter(path)
    merged = merged_parameters({COMPONENT: model}, adapter, strength)
    with torch.no_grad():
        for where, values in merged.items():
            module = find_module(model, where.module)
            assert module is not None
            module.get_parameter(where.parameter).copy_(values)
