import sys
from types import ModuleType

from mmvisattn.compat import mmcv_ext

import mmcv.ops  # noqa: F401
import pytest


def use(monkeypatch: pytest.MonkeyPatch, ext: ModuleType) -> None:
    """Let all of ``mmcv.ops`` run on one module of operators."""
    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', ext)


@pytest.fixture(scope='session')
def supplied():
    """The module that takes the place of ``mmcv._ext``."""
    module = ModuleType(mmcv_ext.NAME)
    mmcv_ext._ExtFinder().exec_module(module)
    return module


@pytest.fixture(autouse=True)
def supplied_operators(monkeypatch, supplied):
    """What is tested here is what we supply, where mmcv brings operators of its own as well."""
    if mmcv_ext.compiled():
        use(monkeypatch, supplied)
