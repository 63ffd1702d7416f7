"""Registries of the scope ``mmvisattn``.

Each is a child of mmengine's registry of the same kind, so a stock tool finds ``type='mmvisattn.FCViT'`` from the
name alone: mmengine imports this module on meeting the scope, and ``locations`` on the first look-up.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmvisattn', locations=['mmvisattn.models'])
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope='mmvisattn', locations=['mmvisattn.data_checks'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmvisattn', locations=['mmvisattn.engine'])
OPTIM_WRAPPERS = Registry(
    'optimizer wrapper', parent=MMENGINE_OPTIM_WRAPPERS, scope='mmvisattn', locations=['mmvisattn.engine']
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmvisattn',
    locations=['mmvisattn.engine'],
)
STRATEGIES = Registry(
    'strategy', parent=MMENGINE_STRATEGIES, scope='mmvisattn', locations=['mmvisattn.engine.fsdp_strategy']
)


def type_name(type_: type | str | None) -> str:
    """The class's own name, of a `type` in a config: a class, a name with or without scope, or a dotted path."""
    return type_.__name__ if isinstance(type_, type) else str(type_).rpartition('.')[2]
