"""A small network of each kind, for what holds for all."""

from mmvisattn.models import ClassPresenceHead
from mmvisattn.models.backbones import DefocusMamba, DefocusRetNet, DefocusViT, FCViT, FlexViT
from mmvisattn.models.necks import FlexAttentionNeck, SimpleFPN

import torch
from torch import nn

TRANSFORMER = dict(embed_dims=24, depth=2, num_heads=3, mlp_ratio=2)
BACKBONES: dict[type[nn.Module], dict] = {
    FCViT: dict(arch=dict(embed_dims=(8, 16), depths=(1, 1), mlp_ratios=(2, 2)), out_indices=(0, 1)),
    DefocusMamba: dict(
        arch=dict(embed_dims=24, depth=2, d_inner=32, d_state=4, dt_rank=2, group_norm_size=16), pretrain_size=64
    ),
    DefocusViT: dict(arch=TRANSFORMER, pretrain_size=64),
    DefocusRetNet: dict(arch=TRANSFORMER, pretrain_size=64),
    FlexViT: dict(arch=TRANSFORMER, patch_size=16, pretrain_size=64),
}
OTHERS: dict[type[nn.Module], dict] = {
    FlexAttentionNeck: dict(in_channels=24, num_heads=3),
    SimpleFPN: dict(in_channels=24, out_channels=24, num_outs=5),
    ClassPresenceHead: dict(in_channels=24, num_classes=3),
}


def build(network: type[nn.Module], seed: int = 0, **changes) -> nn.Module:
    """A network with some arguments changed; those of ``arch`` by their own names."""
    torch.manual_seed(seed)
    kwargs = dict((BACKBONES | OTHERS)[network])
    if 'arch' in kwargs:
        arch = dict(kwargs['arch'])
        kwargs['arch'] = arch | {name: changes.pop(name) for name in set(changes) & set(arch)}
    module = network(**kwargs | changes)
    module.init_weights()
    return module.eval()
