"""What a user can get wrong: one line that says what and how to put it right, exit status 2, nothing left behind."""

import shutil

from mmvisattn import cli, runs
from mmvisattn.errors import UserError

import pytest
import torch
from mmengine.config import Config

from .utils import ROOT, TOOLS, run_command, run_python, run_tool


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a tool in an empty folder that must refuse; returns the lines on stderr from ``error:`` on."""
    folder = tmp_path / 'current'
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*args: object) -> str:
        with pytest.raises(SystemExit) as exit_info:
            run_tool(*args)
        assert exit_info.value.code == 2
        stderr = capsys.readouterr().err
        assert 'Traceback' not in stderr
        assert not list(folder.iterdir()), 'something was written'
        return stderr[stderr.index('error: ') :].strip()

    return run


# Each: --cfg-options, and what the line must say.
SETTINGS = {
    'arch': ('model.backbone.arch=b21', ["'b21'", "did you mean 'b", "['b12', 'b24', 'b48', 'tiny']"]),
    'arch dict': ('model.backbone.arch.depth=3', ["has no key 'depth'", "did you mean 'depths'"]),
    'backbone': (
        'model.backbone.type=mmvisattn.FCVit',
        ['`model.backbone.type`', "did you mean 'FCViT'", 'set it to one of'],
    ),
    'option': (
        'model.backbone.drop_path=0.1',
        ["no option 'drop_path'", "did you mean 'drop_path_rate'", 'set one of arch,'],
    ),
    'out_indices': ('model.backbone.out_indices=(0,1,2,4)', ['`out_indices`', '(0, 1, 2, 4)', 'must be', '0 to 3']),
    'key': ('optim_wrapper.optimizer.momentun=0.8', ["no key 'momentun'", "did you mean 'momentum'"]),
    'key on the way': ('model.bakbone.with_cp=True', ["no key 'bakbone'", "did you mean 'backbone'"]),
    'top-level key': ('workdir=x', ["no key 'workdir'", "did you mean 'work_dir'"]),
    'far key': ('lr_config.policy=step', ["the config has no key 'lr_config'", 'set one that is there']),
    'list index': ('train_dataloader.dataset.pipeline.9.type=Resize', ['is a list', 'by its number, 0 to 3']),
    'not a dict': (
        'model.backbone.arch.depths.0.x=1',
        ['`model.backbone.arch.depths.0` is 1', 'set `model.backbone.arch.depths.0`'],
    ),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_wrong_setting(name, det_config, refused):
    option, words = SETTINGS[name]
    line = refused('train', det_config, '--cfg-options', option)
    assert '\n' not in line
    assert all(word in line for word in words), line


def test_wrong_setting_in_test_and_predict(det, refused):
    option = ['--cfg-options', 'model.backbone.arch=b21']
    image = next(det.images.iterdir())
    assert "'b21'" in refused('test', det.config, det.checkpoint, *option)
    assert "'b21'" in refused('predict', image, det.config, det.checkpoint, *option)


@pytest.mark.parametrize(
    'option',
    [
        'model.backbone.init_cfg.checkpoint=x.pth',
        'model.backbone.with_cp=True',
        'train_cfg.val_begin=2',
        'randomness.seed=3',
        'find_unused_parameters=True',
        'default_hooks.visualization.draw=True',
        'train_dataloader.dataset.pipeline.2.keep_ratio=True',
    ],
)
def test_right_settings_pass(option, det_config):
    key, _, value = option.partition('=')
    cfg = cli.load_config(str(det_config), {key: value})
    assert cfg.get(key.split('.')[0]) is not None


def test_option_without_a_value(det_config, refused):
    line = refused('train', det_config, '--cfg-options', 'model.backbone.with_cp')
    assert 'is not of the form key=value' in line


def test_missing_config(det_config, refused):
    line = refused('train', det_config.with_name('tiny-retinanets.py'))
    assert "did you mean 'tiny-retinanet.py'" in line and '\n' not in line


def test_missing_config_folder(det_config, refused):
    line = refused('train', det_config.parent / 'nowhere' / det_config.name)
    assert 'there is no folder' in line and '\n' not in line


def test_config_of_another_kind(det, refused, tmp_path):
    assert 'CONFIG comes before CHECKPOINT' in refused('test', det.checkpoint, det.config)
    other = tmp_path / 'other.py'
    other.write_text("model = dict()\ndefault_scope = 'mmpretrain'\n")
    assert "'mmpretrain'; set it to one of ['mmdet', 'mmseg']" in refused('train', other)


def test_config_of_a_toolbox_that_is_not_installed(tmp_path, refused):
    config = tmp_path / 'config.py'
    config.write_text("_base_ = 'mmfewshot::_base_/default_runtime.py'\n")
    line = refused('train', config)
    assert 'mmfewshot is not installed' in line and '\n' not in line


@pytest.mark.parametrize('name', ['det', 'seg'])
def test_missing_data(name, refused, request):
    config = request.getfixturevalue(f'{name}_config')
    lines = refused('train', config, '--cfg-options', 'train_dataloader.dataset.data_root=data/nothing').splitlines()
    assert 'data/nothing' in lines[0] and '`train_dataloader.dataset.data_root`' in lines[0]
    assert '`python tools/data/make_mini.py data/mini`' in lines[0]
    assert lines[1] == 'data/nothing'
    expected = {
        'det': ['annotations/instances_train2017.json', 'train2017/'],
        'seg': ['images/training', 'annotations/training'],
    }
    assert lines[2:] == [f'  {part}  <- missing' for part in expected[name]]


def test_missing_part_of_the_data(seg, mini_data, tmp_path, refused):
    root = tmp_path / 'ade'
    shutil.copytree(mini_data / 'ade/ADEChallengeData2016', root)
    shutil.rmtree(root / 'annotations/validation')
    option = f'test_dataloader.dataset.data_root={root}'
    lines = refused('test', seg.config, seg.checkpoint, '--cfg-options', option).splitlines()
    assert lines[2:] == ['  images/validation', '  annotations/validation  <- missing']


def test_datasets_inside_wrappers_are_checked():
    leaf = dict(type='CocoDataset', data_root='nowhere', ann_file='a.json')
    nested = dict(type='ConcatDataset', datasets=[dict(type='RepeatDataset', dataset=leaf)])
    with pytest.raises(UserError, match=r'`train_dataloader\.dataset\.datasets\.0\.dataset\.data_root`'):
        cli.check_data(Config(dict(train_dataloader=dict(dataset=nested))), 'train_dataloader')
    remote = dict(type='CocoDataset', data_root='s3://bucket/coco/', ann_file='a.json')
    cli.check_data(Config(dict(train_dataloader=dict(dataset=remote))), 'train_dataloader', 'val_dataloader')


@pytest.mark.parametrize('tool', ['test', 'predict', 'train'])
def test_missing_checkpoint(tool, det, refused):
    missing = det.work_dir / 'epoch_33.pth'
    image = next(det.images.iterdir())
    args = {
        'test': [det.config, missing],
        'predict': [image, det.config, missing],
        'train': [det.config, '--resume', missing],
    }
    line = refused(tool, *args[tool])
    assert "did you mean 'epoch_3.pth'" in line and '\n' not in line


@pytest.mark.parametrize('tool', ['test', 'predict'])
def test_foreign_checkpoint(tool, seg, tmp_path, refused):
    foreign = tmp_path / 'foreign.pth'
    torch.save({'state_dict': {'conv1.weight': torch.randn(4, 3, 3, 3)}}, foreign)
    args = [seg.config, foreign]
    line = refused(tool, *args) if tool == 'test' else refused(tool, next(seg.images.iterdir()), *args)
    assert 'conv1.weight' in line and 'patch_embed' in line and '\n' not in line


def test_foreign_checkpoint_with_a_config_that_lacks_the_hook(seg, seg_config, tmp_path, refused):
    config = seg_config.with_name('no-hook.py')
    config.write_text(f"_base_ = './{seg_config.name}'\ncustom_hooks = []\n")
    foreign = tmp_path / 'foreign.pth'
    torch.save({'state_dict': {'conv1.weight': torch.randn(4, 3, 3, 3)}}, foreign)
    assert 'conv1.weight' in refused('test', config, foreign, '--out', 'labels', '--show-dir', 'drawn')


class Payload:
    """Leaves a file in the current folder when it is loaded."""

    def __reduce__(self):
        return open, ('it-ran.txt', 'w')


@pytest.mark.parametrize('tool', ['test', 'predict'])
def test_checkpoint_that_carries_code(tool, det, tmp_path, refused):
    torch.save({'state_dict': {}, 'more': Payload()}, tmp_path / 'unsafe.pth')
    images = [] if tool == 'test' else [next(det.images.iterdir())]
    line = refused(tool, *images, det.config, tmp_path / 'unsafe.pth')
    assert 'unsafe.pth is refused' in line and '\n' not in line


def test_checkpoint_that_is_none(det, tmp_path, refused):
    (tmp_path / 'text.pth').write_text('not found')
    line = refused('test', det.config, tmp_path / 'text.pth')
    assert 'text.pth cannot be read as a checkpoint' in line and '\n' not in line


def test_missing_pretrained_weights(det_config, refused):
    option = ['model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=nowhere/fcvit.pth']
    line = refused('train', det_config, '--cfg-options', *option)
    assert 'nowhere/fcvit.pth' in line and 'init_cfg' in line and '\n' not in line


def test_image_smaller_than_the_stride(seg, refused):
    # The last stage of FCViT shrinks by 32.
    config = seg.config.with_name('small.py')
    config.write_text(
        f"_base_ = './{seg.config.name}'\n"
        "small = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(16, 16)), dict(type='PackSegInputs')]\n"
        'test_dataloader = dict(dataset=dict(pipeline=small))\n'
    )
    line = refused('test', config, seg.checkpoint)
    assert '16×16' in line and 'Resize' in line and '\n' not in line


def test_predict_without_pictures(det, tmp_path, refused):
    args = [det.config, det.checkpoint]
    first = sorted(det.images.iterdir())[0]
    line = refused('predict', first.with_name('000001000009.jpg'), *args)
    assert 'image' in line and 'did you mean' in line
    (tmp_path / 'empty').mkdir()
    assert 'has no pictures' in refused('predict', tmp_path / 'empty', *args)
    assert 'is no picture' in refused('predict', det.config, *args)
    assert 'would overwrite' in refused('predict', first, *args, '--out-dir', det.images)
    assert 'would overwrite' in refused('predict', first, det.images, *args)


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU is there')
def test_without_a_gpu(det, refused):
    image = next(det.images.iterdir())
    assert 'torch sees no GPU' in refused('predict', image, det.config, det.checkpoint, '--device', 'cuda:0')


def test_flags_that_the_config_does_not_allow(det, seg, refused):
    assert 'base_batch_size=16' in refused('train', seg.config, '--auto-scale-lr')
    assert 'name it .pkl' in refused('test', det.config, det.checkpoint, '--out', 'results')
    mask_head = 'model.mask_head.type=CondInstMaskHead'
    assert 'without --tta' in refused('test', det.config, det.checkpoint, '--tta', '--cfg-options', mask_head)


def test_amp_with_another_wrapper(det_config, refused):
    option = 'optim_wrapper.type=ApexOptimWrapper'
    assert "'ApexOptimWrapper'" in refused('train', det_config, '--amp', '--cfg-options', option)


def test_what_was_there_before_stays(seg, tmp_path, capsys):
    kept = tmp_path / 'work/kept.txt'
    kept.parent.mkdir()
    kept.write_text('results')
    with pytest.raises(SystemExit):
        run_tool('train', seg.config, '--work-dir', kept.parent, '--cfg-options', 'model.backbone.arch=b21')
    assert list(kept.parent.iterdir()) == [kept]


def test_checkpoints_stay_when_an_error_comes_later(seg, tmp_path):
    with pytest.raises(UserError), runs.no_half_written(str(tmp_path / 'work')):
        (tmp_path / 'work').mkdir()
        (tmp_path / 'work/iter_2.pth').write_bytes(b'weights')
        raise UserError('an image is too small')
    assert (tmp_path / 'work/iter_2.pth').is_file()


def test_other_errors_keep_their_traceback(seg, tmp_path):
    with pytest.raises(KeyError, match='NoSuchHead'):
        option = 'model.decode_head.type=NoSuchHead'
        run_tool('train', seg.config, '--work-dir', tmp_path / 'work', '--cfg-options', option)


def test_exit_status_of_a_process(tmp_path):
    done = run_command('python', TOOLS / 'train.py', tmp_path / 'nowhere.py')
    assert done.returncode == 2
    assert done.stdout == ''
    assert done.stderr.startswith('error: config ') and done.stderr.count('\n') == 1


def test_module_with_a_missing_script():
    done = run_python('-m', 'mmvisattn', ROOT / 'tools/trian.py')
    assert done.returncode == 2
    assert "did you mean 'train.py'" in done.stderr and done.stderr.count('\n') == 1
