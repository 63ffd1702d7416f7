from mmvisattn.models.backbones import FCViT, FlexViT
from mmvisattn.models.necks import FlexAttentionNeck
from mmvisattn.testing.fcvit import global_context
from mmvisattn.visualization import Recorder, effective_receptive_field
from mmvisattn.visualization.receptive_field import side_of_mass
from mmvisattn.visualization.recorder import context_similarity

import pytest
import torch
import torch.nn.functional as F
from torch import nn

FLEX = dict(embed_dims=24, depth=4, num_heads=3, mlp_ratio=2)
ARCH = dict(embed_dims=(16, 32, 32, 32), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))


def test_recorded_similarity_is_that_of_the_formula_and_the_outputs_stay():
    torch.manual_seed(0)
    network = FCViT(ARCH).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = network(x)
        with Recorder(network) as recorder:
            after = network(x)
        assert all(torch.equal(a, b) for a, b in zip(before, after))
        (look,) = recorder.take()
        network(x)
    assert not recorder.looks  # the hooks are gone
    assert torch.equal(look.image, x[0])
    similarity = look.of_kind('similarity')
    assert len(similarity) == 4 * 2 * 8
    assert similarity[0].layer == 'stage 1, block 1, context 1' and similarity[0].values.shape == (16, 24)
    assert similarity[0].cell == (4, 4) and similarity[-1].cell == (32, 32)


def test_similarity_times_value_is_the_global_context():
    torch.manual_seed(0)
    module = FCViT(ARCH).network[0][0].token_mixer.gc1
    nn.init.normal_(module.rescale_weight)
    nn.init.normal_(module.rescale_bias)
    x = torch.randn(2, 16, 5, 7)
    with torch.no_grad():
        weights = context_similarity(module, x)  # (2, 8, 5, 7)
        value = module.bottleneck(x.mean((2, 3))).view(2, 8, 2, 1, 1)
        torch.testing.assert_close((weights[:, :, None] * value).flatten(1, 2), global_context(module, x))


def test_receptive_field_of_a_convolution_is_its_kernel():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 1, 3, padding=1)
    field = effective_receptive_field(conv, torch.randn(1, 9, 9), position=(4, 6))
    kernel = conv.weight[0, 0].detach().abs()
    expected = F.pad(kernel, (5, 1, 3, 3))
    torch.testing.assert_close(field / field.sum(), expected / expected.sum())


def test_side_of_mass():
    field = torch.zeros(9, 9)
    field[4, 4], field[4, 6] = 2, 1
    assert [side_of_mass(field, share) for share in (0.5, 0.7, 1)] == [1, 5, 5]


@pytest.mark.parametrize(
    ('network', 'levels', 'layer', 'cell'),
    [
        (FlexViT(FLEX, 8, 64, zoom=3, num_glance_layers=2, cell_size=1), None, 2, (24, 24)),
        # 45 rows are 6 tokens of stride 8 and 3 of stride 16, whose cells are two high.
        (FlexAttentionNeck(16, 1, 0, num_heads=2, cell_size=2), [(6, 9), (3, 5)], 1, (30, 280 / 9)),
    ],
    ids=['backbone', 'neck'],
)
def test_recorder_numbers_the_layer_and_measures_the_cells(network, levels, layer, cell):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Identity() if levels else network
            self.neck = network

        def forward(self, x):
            x = self.backbone(x)
            return self.neck([torch.randn(1, 16, *level) for level in levels]) if levels else x

    model = Model().eval()
    recorder = Recorder(model, ['cells'])
    x = torch.randn(1, 3, 45, 70)
    with torch.no_grad():
        model(x)
        model(x)
    looks = recorder.take()
    assert len(looks) == 2
    for look in looks:
        (chosen,) = look.of_kind('cells')
        assert chosen.layer == f'{type(network).__name__}, layer {layer}'
        assert chosen.cell == pytest.approx(cell)
        # they cover the image, and there are no more of them than that takes
        assert all(side * n >= size > side * (n - 1) for side, n, size in zip(cell, chosen.values.shape, (45, 70)))
