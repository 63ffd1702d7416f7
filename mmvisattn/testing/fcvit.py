"""FCViT written out formula by formula, in NCHW and with torch's own operators."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.backbones.fcvit import NUM_HEADS, FCViT, GlobalContext


class PlainFCViT(nn.Module):
    """FCViT by its formulas, without drop path.

    Args:
        network (FCViT): The network whose parameters it has.
    """

    def __init__(self, network: FCViT) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """As the network."""
        x = self.network.patch_embed(x)
        outs = []
        for i, part in enumerate(self.network.network):
            if i % 2:
                x = part(x)
                continue
            for module in part.children():
                x = block(module, x)
            if i // 2 in self.network.out_indices:
                outs.append(getattr(self.network, f'norm{i}')(x))
        return tuple(outs)


def block(module: Any, x: Tensor) -> Tensor:
    """A :class:`~mmvisattn.models.backbones.fcvit.Block`: (B, C, H, W) → (B, C, H, W)."""
    mixer = module.token_mixer
    y = module.norm1(x)
    y = y + global_context(mixer.gc1, y)
    y = F.gelu(mixer.fc1(_depthwise(mixer.dw1, y)))
    y = y + global_context(mixer.gc2, y)
    y = F.gelu(mixer.fc2(_depthwise(mixer.dw2, y)))
    x = x + module.layer_scale_1.view(-1, 1, 1) * y
    mlp = module.channel_mixer
    y = mlp.fc2(F.gelu(_depthwise(mlp.dwconv, mlp.fc1(module.norm2(x)))))
    return x + module.layer_scale_2.view(-1, 1, 1) * y


def global_context(module: GlobalContext, x: Tensor) -> Tensor:
    """The weighted global context without the map that it is added to: (B, C, H, W) → (B, C, H, W)."""
    B, C, H, W = x.shape
    pooled = x.mean((2, 3))  # (B, C)
    hidden = F.linear(pooled, module.fc1.weight, module.fc1.bias)
    if module.compete:
        hidden = hidden.view(B, 2, -1).max(1).values
    else:
        hidden = F.gelu(hidden)
    value = F.linear(hidden, module.fc2.weight, module.fc2.bias)

    heads = x.view(B, NUM_HEADS, C // NUM_HEADS, H * W)
    similarity = (heads * pooled.view(B, NUM_HEADS, -1, 1)).sum(2) * (C // NUM_HEADS) ** -0.5  # (B, heads, HW)
    mean = similarity.mean((1, 2), keepdim=True)
    std = similarity.std((1, 2), keepdim=True)
    similarity = (similarity - mean) / (std + 1e-5)
    similarity = similarity * module.rescale_weight.view(-1, 1) + module.rescale_bias.view(-1, 1)
    out = similarity.unsqueeze(2) * value.view(B, NUM_HEADS, -1, 1)
    return out.reshape(B, C, H, W)


def _depthwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, padding=conv.padding, groups=conv.groups)


def gradients(network: nn.Module, outs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The gradient of the sum of the outputs' mean squares with respect to every parameter, by its name."""
    loss = sum((out.square().mean() for out in outs), outs[0].new_zeros(()))
    grads = torch.autograd.grad(loss, list(network.parameters()))
    return dict(zip((name for name, _ in network.named_parameters()), grads))
