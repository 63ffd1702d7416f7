import logging

from mmvisattn.checkpoint import compare, load_pretrained, weights_of
from mmvisattn.errors import UserError
from mmvisattn.models.backbones import FCViT

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS as ROOT

from tests.golden import load

SMALL = dict(embed_dims=(8, 16, 16, 24), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))
NORMS = {f'norm{i}.{leaf}' for i in (0, 2, 4, 6) for leaf in ('weight', 'bias')}


def classifier_weights(seed: int = 1) -> dict[str, torch.Tensor]:
    """The weights of a classifier as the authors release it: no output norms, but a norm and a head."""
    torch.manual_seed(seed)
    network = FCViT(SMALL)
    weights = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in network.state_dict().items()}
    weights = {k: v for k, v in weights.items() if k not in NORMS}
    weights |= {'norm.weight': torch.randn(24), 'norm.bias': torch.randn(24)}
    return weights | {'head.weight': torch.randn(10, 24), 'head.bias': torch.randn(10)}


def dense_weights() -> dict[str, torch.Tensor]:
    weights = {k: v for k, v in classifier_weights().items() if not k.startswith(('norm.', 'head.'))}
    dims = dict(zip((0, 2, 4, 6), SMALL['embed_dims']))
    return weights | {f'norm{i}.{leaf}': torch.randn(dims[i]) for i in dims for leaf in ('weight', 'bias')}


def prefixed(weights, prefix):
    return {prefix + name: value for name, value in weights.items()}


LAYOUTS = {
    'bare': lambda w: w,
    'state_dict': lambda w: {'state_dict': w, 'epoch': 3},
    'model': lambda w: {'model': w, 'optimizer': {'state': {}, 'param_groups': []}},
    'module': lambda w: prefixed(w, 'module.'),
    'state_dict of a wrapped model': lambda w: {'state_dict': prefixed(w, 'module.')},
    'detector': lambda w: {'state_dict': prefixed(w, 'backbone.') | {'neck.conv.weight': torch.randn(3)}},
    'wrapped detector': lambda w: {'model': prefixed(w, 'module.backbone.') | {'module.head.bias': torch.randn(3)}},
}


def build(path, **kwargs) -> FCViT:
    network = FCViT(SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(path), **kwargs))
    network.init_weights()
    return network


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('form', [classifier_weights, dense_weights])
def test_every_layout_of_the_authors_files(tmp_path, layout, form):
    weights = form()
    path = tmp_path / 'fcvit.pth'
    torch.save(LAYOUTS[layout](weights), path)
    network = build(path)
    for name, value in network.state_dict().items():
        if name in weights:
            torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
        else:
            assert name in NORMS


def test_backbone_inside_a_detector(tmp_path):
    weights = dense_weights()
    torch.save({'state_dict': weights}, tmp_path / 'fcvit.pth')

    class Detector(BaseModule):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = ROOT.build(backbone)

    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'fcvit.pth'))
    detector = Detector(dict(type='mmvisattn.FCViT', arch=SMALL, init_cfg=init_cfg))
    detector.init_weights()
    torch.testing.assert_close(detector.backbone.state_dict(), weights, check_device=False)


def test_report_counts_every_kind_of_key(tmp_path):
    weights = classifier_weights()
    torch.save(weights, tmp_path / 'fcvit.pth')
    report = load_pretrained(FCViT(SMALL), str(tmp_path / 'fcvit.pth'))
    assert set(report.missing) == NORMS
    assert set(report.unexpected) == {'norm.weight', 'norm.bias', 'head.weight', 'head.bias'}
    assert report.mismatched == {}
    assert set(report.loaded) | NORMS == set(FCViT(SMALL).state_dict())
    assert report.summary().startswith(f'{len(report.loaded)} keys loaded, 8 missing (norm0.weight, ')


def test_missing_keys_are_a_warning_unless_they_are_expected(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmvisattn.checkpoint.loading.print_log', lambda text, logger, level: said.append((level, text))
    )
    weights = classifier_weights()
    torch.save(weights, tmp_path / 'whole.pth')
    build(tmp_path / 'whole.pth')
    del weights['network.0.0.norm1.weight']
    torch.save(weights, tmp_path / 'part.pth')
    build(tmp_path / 'part.pth')
    assert [level for level, _ in said] == [logging.INFO, logging.WARNING]
    assert 'network.0.0.norm1.weight' in said[1][1]


def test_fewer_outputs_take_what_they_need(tmp_path):
    torch.save(dense_weights(), tmp_path / 'fcvit.pth')
    network = FCViT(SMALL, out_indices=(0, 1))
    report = load_pretrained(network, str(tmp_path / 'fcvit.pth'))
    assert report.missing == [] and set(report.loaded) >= {'norm2.weight', 'network.2.0.norm1.weight'}
    assert 'network.6.0.norm1.weight' in report.unexpected


def test_prefix(tmp_path):
    weights = dense_weights()
    torch.save(prefixed(weights, 'teacher.') | prefixed(classifier_weights(seed=2), 'student.'), tmp_path / 'both.pth')
    network = build(tmp_path / 'both.pth', prefix='teacher')
    torch.testing.assert_close(dict(network.state_dict()), weights)


def test_key_names_of_the_released_classifiers_match():
    for arch in ('tiny', 'b12'):
        golden = load(f'fcvit_{arch}_cls_keys')
        report = compare(FCViT(arch).state_dict(), dict.fromkeys(golden['keys'], torch.empty(0)))
        assert set(report.missing) == NORMS
        assert set(report.unexpected) == set(golden['only_in_cls'])


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'conv1.weight': torch.randn(3), 'fc.bias': torch.randn(3)}, 'not one of the 2 keys.*conv1.weight'),
        ({'state_dict': {}}, 'not one of the 0 keys'),
        ({'epoch': 3}, 'not one of the 0 keys'),
    ],
)
def test_a_file_that_matches_nothing_is_an_error(tmp_path, content, message):
    torch.save(content, tmp_path / 'foreign.pth')
    with pytest.raises(UserError, match=message):
        build(tmp_path / 'foreign.pth')


def test_another_size_is_an_error_and_leaves_the_network_alone(tmp_path):
    torch.save(FCViT('tiny').state_dict(), tmp_path / 'tiny.pth')
    network = FCViT(SMALL)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError, match=r'\(32, 3, 7, 7\) in the file and \(8, 3, 7, 7\) in the network'):
        load_pretrained(network, str(tmp_path / 'tiny.pth'))
    torch.testing.assert_close(dict(network.state_dict()), before)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UserError, match='nowhere.pth.*does not exist.*init_cfg'):
        build(tmp_path / 'nowhere.pth')


def test_weights_of_prefers_the_weights_to_the_optimizer():
    weights = {'a': torch.ones(1)}
    assert weights_of({'state_dict': weights, 'optimizer': {'b': torch.ones(1)}}) == weights
    assert weights_of({'epoch': 1, **weights}) == weights
