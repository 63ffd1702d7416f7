from mmvisattn.errors import UserError
from mmvisattn.models import ClassPresenceHead

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample


def sample(labels):
    return SegDataSample(gt_sem_seg=PixelData(data=torch.tensor(labels)[None]), metainfo=dict(img_shape=(2, 2)))


LABELS = [[[0, 0], [3, 255]], [[2, 2], [2, 2]], [[255, 255], [255, 255]]]
PRESENT = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.double)


def test_loss_is_binary_cross_entropy_on_the_pooled_map():
    torch.manual_seed(0)
    head = ClassPresenceHead(8, 4, in_index=1, loss_weight=0.3).double()
    maps = [torch.randn(3, 5, 2, 2), torch.randn(3, 8, 5, 7, dtype=torch.double, requires_grad=True)]
    losses = head.loss(maps, [sample(labels) for labels in LABELS], None)
    p = torch.sigmoid(maps[1].mean((2, 3)) @ head.fc.weight.T + head.fc.bias)
    expected = -0.3 * (PRESENT * p.log() + (1 - PRESENT) * (1 - p).log()).mean()
    torch.testing.assert_close(losses, dict(loss_presence=expected))
    losses['loss_presence'].backward()
    assert (maps[1].grad.abs().amax((0, 1)) > 0).all()  # every position has a part in it


def test_label_to_ignore_is_chosen():
    head = ClassPresenceHead(8, 4, ignore_index=3)
    assert head.presence(torch.tensor([[0, 3], [1, 3]])).tolist() == [True, True, False, False]


def test_mixed_precision():
    head, maps = ClassPresenceHead(8, 4), [torch.randn(3, 8, 5, 7)]
    with torch.autocast('cpu', torch.bfloat16):
        loss = head.loss(maps, [sample(labels) for labels in LABELS])['loss_presence']
    assert loss.dtype == torch.float32
    expected = head.loss(maps, [sample(labels) for labels in LABELS])['loss_presence']
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)


def segmentor():
    init_default_scope('mmseg')  # whatever a test before this one left
    norm_cfg = dict(type='BN')
    return MODELS.build(
        ConfigDict(
            type='EncoderDecoder',
            backbone=dict(type='mmvisattn.DefocusRetNet', arch=dict(embed_dims=16, depth=1, num_heads=2, mlp_ratio=1)),
            neck=dict(type='mmvisattn.SimpleFPN', in_channels=16, out_channels=8),
            decode_head=dict(
                type='FCNHead', in_channels=8, in_index=0, channels=8, num_convs=1, num_classes=4, norm_cfg=norm_cfg
            ),
            auxiliary_head=dict(type='mmvisattn.ClassPresenceHead', in_channels=8, in_index=2, num_classes=4),
            test_cfg=dict(mode='whole'),
        )
    )


def test_in_a_stock_segmentor():
    torch.manual_seed(0)
    model = segmentor()
    model.init_weights()
    x = torch.randn(3, 3, 64, 64)
    samples = [sample(F.interpolate(torch.tensor([[rows]]).float(), (64, 64))[0, 0].long().tolist()) for rows in LABELS]
    losses = model.loss(x, samples)
    expected = F.binary_cross_entropy_with_logits(model.auxiliary_head(model.extract_feat(x)), PRESENT.float())
    torch.testing.assert_close(losses['aux.loss_presence'], 0.4 * expected)
    total, logged = model.parse_losses(losses)
    torch.testing.assert_close(total, losses['decode.loss_ce'] + losses['aux.loss_presence'])
    total.backward()
    assert all(param.grad.abs().max() > 0 for param in model.auxiliary_head.parameters())
    model.eval()
    assert model.predict(x)[0].pred_sem_seg.data.shape == (1, 64, 64)


def test_it_learns():
    """A class shown by a patch of its own colour, anywhere in the image."""
    torch.manual_seed(0)
    head = ClassPresenceHead(4, 4, loss_weight=1.0)
    optimizer = torch.optim.Adam(head.parameters(), 0.3)
    for _ in range(150):
        labels = torch.randint(0, 4, (16, 1, 2, 2))
        maps = [F.one_hot(labels[:, 0], 4).movedim(-1, 1).float()]
        loss = head.loss(maps, [sample(item[0].tolist()) for item in labels])['loss_presence']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(in_index=2), '`in_index` is 2 and there are 2 maps'),
        (dict(in_channels=7), 'has 8 channels; set `in_channels`, now 7'),
        (dict(num_classes=3), 'a label 3 and there are 3 classes; set `num_classes`'),
    ],
)
def test_what_does_not_fit_is_answered(kwargs, message):
    head = ClassPresenceHead(**dict(in_channels=8, num_classes=4) | kwargs)
    with pytest.raises(UserError, match=message):
        head.loss([torch.randn(3, 8, 4, 4)] * 2, [sample(labels) for labels in LABELS])
