import contextlib
import importlib
import inspect
import sys
import types

from mmvisattn.compat import _import_hook

import pytest


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Name of a module that can be imported and has not been."""
    (tmp_path / 'hooked_module.py').write_text(
        'seen = list(events)\nvalue = 1\n'.replace('events', '__import__("builtins").events')
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield 'hooked_module'
    sys.modules.pop('hooked_module', None)
    _import_hook._finder.hooks.pop('hooked_module', None)


@contextlib.contextmanager
def record(events, module):
    events.append('before')
    yield
    events.append(f'after {getattr(module, "value", None)}')


def test_surrounds_the_first_import(module, monkeypatch):
    events = []
    monkeypatch.setattr('builtins.events', events, raising=False)
    _import_hook.around_import(module, lambda found: record(events, found))
    assert events == []
    found = importlib.import_module(module)
    assert found.seen == ['before'] and events == ['before', 'after 1']
    importlib.import_module(module)
    assert len(events) == 2
    assert inspect.getsource(found).startswith('seen')


def test_module_that_is_there(monkeypatch):
    there = types.ModuleType('hooked_there')
    there.value = 2
    monkeypatch.setitem(sys.modules, 'hooked_there', there)
    events = []
    _import_hook.around_import('hooked_there', lambda found: record(events, found))
    assert events == ['before', 'after 2']


def test_module_that_fails_may_be_tried_again(module, tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr('builtins.events', events, raising=False)
    file = tmp_path / 'hooked_module.py'
    good = file.read_text()
    file.write_text('raise RuntimeError("broken")\n')
    _import_hook.around_import(module, lambda found: record(events, found))
    with pytest.raises(RuntimeError, match='broken'):
        importlib.import_module(module)
    file.write_text(good)
    importlib.invalidate_caches()
    assert importlib.import_module(module).value == 1
    assert events == ['before', 'before', 'after 1']


def test_module_that_is_missing():
    _import_hook.around_import('hooked_nowhere', lambda found: record([], found))
    with pytest.raises(ModuleNotFoundError, match='hooked_nowhere'):
        importlib.import_module('hooked_nowhere')
    del _import_hook._finder.hooks['hooked_nowhere']
