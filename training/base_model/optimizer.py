"""Muon for hidden matrices and convolutions, AdamW for everything else, behind one step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer


def flat_view(tensor: Tensor) -> Tensor:
    """[out, in] as it is; [out, in, kh, kw] in channels_last memory as a view [out, kh*kw*in] of the same storage."""
    return tensor if tensor.ndim == 2 else tensor.permute(0, 2, 3, 1).flatten(1)


class MatrixOptimizer:
    """Muon (Jordan et al., 2024; torch.optim.Muon) over 2-D views of the hidden weights, AdamW over the rest.

    A convolution counts as the matrix [out, kh*kw*in]. Embeddings and the first and last convolutions, named in `ends`, stay
    with AdamW, as Muon's authors advise. Muon's update is scaled to AdamW's usual size, so that both take rates of one order.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        muon_learning_rate: float,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        ends: tuple[str, ...],
    ) -> None:
        hidden: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            inner = parameter.ndim in (2, 4) and not any(end in name for end in ends)
            (hidden if inner else rest).append(parameter)
        self.hidden, self.parameters = hidden, [*hidden, *rest]
        self.views = [nn.Parameter(flat_view(parameter.data)) for parameter in hidden]
        self.parts: list[Optimizer] = [
            Muon(self.views, lr=muon_learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            AdamW(rest, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True),
        ]
        self.rates = (muon_learning_rate, learning_rate)

    def step(self, factor: float, max_grad_norm: float) -> Tensor:
        """Clip the gradients together, step both parts at `factor` of their rates, free the gradients; returns the norm."""
        norm = nn.utils.clip_grad_norm_(self.parameters, max_grad_norm)
        for view, parameter in zip(self.views, self.hidden, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            view.grad = flat_view(gradient if gradient.ndim == 2 else gradient.contiguous(memory_format=torch.channels_last))
        for part, rate in zip(self.parts, self.rates, strict=True):
            part.param_groups[0]["lr"] = rate * factor
            part.step()
        for parameter in (*self.parameters, *self.views):
            parameter.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """Moments as flat tensors, named `optimizer.PART.INDEX.NAME`."""
        return {
            f"optimizer.{i}.{j}.{name}": value
            for i, part in enumerate(self.parts)
            for j, state in part.state_dict()["state"].items()
            for name, value in state.items()
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` gave; other keys are passed over."""
        for i, part in enumerate(self.parts):
            packed, parameters = part.state_dict(), part.param_groups[0]["params"]
            for key, value in tensors.items():
                kind, *rest = key.split(".")
                if kind == "optimizer" and rest[0] == str(i):
                    owner = parameters[int(rest[1])]
                    # The fused step walks memory, not indices: a moment must lie in memory as its parameter does.
                    laid = torch.empty_like(owner).copy_(value) if value.shape == owner.shape else value
                    packed["state"].setdefault(int(rest[1]), {})[rest[2]] = laid
            part.load_state_dict(packed)
