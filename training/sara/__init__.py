"""SaRA: train the weights that do nothing (Hu et al. 2025, arXiv 2409.06633), on any torch model.

    from studio.training import sara

    optimizer = sara.AdamW(model, threshold=2e-3, switch_step=2500)  # or density=0.1, lr=5e-4
    for batch in batches:
        loss = loss_of(model(batch)) + optimizer.regularizer()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([optimizer.weights.delta], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    optimizer.save("change.safetensors")  # about 3 bytes a trained weight
    optimizer.close()  # the model as it was; keep() leaves the trained weights in
    sara.load_into(model, "change.safetensors", strength=0.8)

Diffusion models are trained with the method "sara" (`studio train sara`), which is made of the same parts.
"""

from studio.training.sara.nuclear import NuclearNorm
from studio.training.sara.optimizer import AdamW, load_into
from studio.training.sara.packed import PackedWeights
from studio.training.sara.selection import SelectionRule, select

__all__ = ["AdamW", "NuclearNorm", "PackedWeights", "SelectionRule", "load_into", "select"]
