"""What a tiny model draws and is made of, for comparing before and after."""

from collections import OrderedDict

import torch

from tests.support.tiny_models import TinyModel


def outputs(model: TinyModel, batch: int = 2) -> list[torch.Tensor]:
    """What the UNet and every text encoder draw of fixed inputs."""
    ids = model.token_ids(batch)
    with torch.no_grad():
        return [model.unet(**model.unet_inputs(batch)).sample, *(encoder(ids)[0] for encoder in model.text_encoders)]


def fingerprint(model: TinyModel) -> dict[str, object]:
    """Every tensor's bytes and every attribute of every module, with their order and identity."""
    prints: dict[str, object] = {}
    for component, root in model.components().items():
        for name, tensor in root.state_dict(keep_vars=True).items():
            prints[f"{component}.{name}"] = (id(tensor), tensor.dtype, tensor.requires_grad, tensor.detach().numpy().tobytes())
        for name, module in root.named_modules():
            attributes = {
                key: list(map(id, value.values())) if isinstance(value, dict | OrderedDict) else id(value)
                for key, value in module.__dict__.items()
            }
            prints[f"{component}.{name}.__dict__"] = list(attributes.items())
    return prints


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor], tolerance: float = 2e-6) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=1e-5)


def assert_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
