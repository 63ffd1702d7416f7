from mmvisattn.checkpoint import timm_scheme
from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusViT

import huggingface_hub.constants
import pytest
import timm
import torch
from mmengine.runner.checkpoint import CheckpointLoader
from safetensors.torch import save_file

NAME = 'deit_tiny_patch16_224'


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))


@pytest.fixture
def released(offline, tmp_path):
    """The weights of DeiT in timm's cache."""
    torch.manual_seed(0)
    weights = timm.create_model(NAME).state_dict()
    repository, revision = tmp_path / f'models--timm--{NAME}.fb_in1k', 'a' * 40
    (repository / 'snapshots' / revision).mkdir(parents=True)
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text(revision)
    save_file(weights, repository / 'snapshots' / revision / 'model.safetensors')
    return weights


@pytest.mark.parametrize('name', [NAME, f'{NAME}.fb_in1k'])
def test_timms_weights_are_loaded_by_name(name, released):
    weights = CheckpointLoader.load_checkpoint(f'timm://{name}', map_location='cpu')['state_dict']
    assert list(weights) == list(released)
    assert all(torch.equal(weights[key], released[key]) for key in released)


def test_backbone_starts_from_timms_weights(released):
    arch = dict(embed_dims=192, depth=12, num_heads=3, mlp_ratio=4)
    net = DefocusViT(arch, init_cfg=dict(type='Pretrained', checkpoint=f'timm://{NAME}'))
    net.init_weights()
    state = net.state_dict()
    assert torch.equal(state['patch_embed.projection.weight'], released['patch_embed.proj.weight'])
    same = [key for key in state if key in released]
    assert len(same) == 12 * 12 + 2
    assert all(torch.equal(state[key], released[key]) for key in same)


def test_weights_that_cannot_be_had_offline(offline):
    message = rf'could not get the weights of {NAME!r} .*no network.*copy its cache.*path of a file'
    with pytest.raises(UserError, match=message):
        CheckpointLoader.load_checkpoint(f'timm://{NAME}')


@pytest.mark.parametrize('name', ['deit_tiny_patch16_22', 'vit_base_patch16_gap_224', f'{NAME}.nonsense'])
def test_name_without_weights(name, offline):
    with pytest.raises(UserError, match=f'has no weights for {name!r} .did you mean'):
        CheckpointLoader.load_checkpoint(f'timm://{name}')


@pytest.mark.parametrize(
    ('name', 'told'), [('vit_tiny_patch16_224.augreg_in21k_ft_in1k', True), ('deit_tiny_patch16_224.fb_in1k', False)]
)
def test_another_normalisation_is_told(name, told, monkeypatch):
    create, lines = timm.create_model, []
    monkeypatch.setattr(timm, 'create_model', lambda name, pretrained: create(name))
    monkeypatch.setattr(timm_scheme, 'print_log', lambda line, **_: lines.append(line))
    CheckpointLoader.load_checkpoint(f'timm://{name}')
    assert len(lines) == told
    for key in ('mean', 'std'):
        assert not told or f'model.data_preprocessor.{key}=[127.5, 127.5, 127.5]' in lines[0]
