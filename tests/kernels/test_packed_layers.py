"""Packed layers compute what torch's own do, at every size that a UNet has, and can be switched off."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from studio.kernels.packed_layers import Packed, can_pack, has_packed_layers

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.mark.parametrize("shape", [(3, 7), (2, 36, 24), (1, 1, 5), (5, 4, 3, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(shape: tuple[int, ...], bias: bool):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(11, shape[-1], generator=generator)
    offset = torch.randn(11, generator=generator) if bias else None
    layer = Packed(weight, offset)
    for each in (x, x.transpose(0, 1) if len(shape) > 2 else x, torch.cat([x, x])):
        torch.testing.assert_close(layer(each), F.linear(each, weight, offset), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [(1, 1, 0, 1, 1), (3, 1, 1, 1, 1), (3, 2, 1, 1, 1), (3, 1, 2, 2, 1), (3, 1, 1, 1, 4)],
)
def test_convolutions(kernel: int, stride: int, padding: int, dilation: int, groups: int):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(12, 8 // groups, kernel, kernel, generator=generator), torch.randn(12, generator=generator)
    layer = Packed(weight, bias, (stride, stride), (padding, padding), (dilation, dilation), groups)
    for batch, side in ((2, 9), (5, 3), (1, 12)):
        x = torch.randn(batch, 8, side, side, generator=generator)
        wanted = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        torch.testing.assert_close(layer(x), wanted, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), wanted, atol=1e-4, rtol=1e-5)


def test_it_can_be_switched_off_and_is_for_float32_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    assert has_packed_layers() and can_pack(torch.ones(2, 2))
    assert not can_pack(torch.ones(2, 2, dtype=torch.bfloat16)) and not can_pack(torch.ones(2, 2, device="meta"))
    monkeypatch.setenv("STUDIO_KERNELS", "plain")
    assert not can_pack(torch.ones(2, 2))
