from mmvisattn.checkpoint.settings import read_settings

from mmengine.config import Config


def test_what_mmengine_writes_is_read():
    content = dict(
        model=dict(scales=[2.0, -1], size=(3, 4), nothing=None, on=True, name="it's"),
        keys={'a.b': dict(lr_mult=0.1), 'end': float('inf')},
        other=1,
    )
    settings = read_settings(Config(content).pretty_text, ['model', 'keys', 'absent'])
    assert settings == dict(model=content['model'], keys=content['keys'])


def test_nothing_is_run(tmp_path):
    trap = tmp_path / 'it-ran'
    text = f"model = dict(a=open({str(trap)!r}, 'w'))\nkeys = [x for x in 'ab']\nother = dict(b=1)\n"
    assert read_settings(text, ['model', 'keys', 'other']) == dict(other=dict(b=1))
    assert not trap.exists()
    assert read_settings('model = (', ['model']) == {}
