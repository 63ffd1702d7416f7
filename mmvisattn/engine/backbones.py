"""Where the backbones of a model are."""

from torch import nn


def find_backbones(model: nn.Module) -> dict[str, nn.Module]:
    """The backbones in a model, also those of a student and a teacher, and inside of any wrapper.

    Args:
        model (nn.Module): A detector or a segmentor.

    Returns:
        Names and modules, outermost only: what tells its own depth by ``get_layer_depth``; where nothing does, what is
        called ``backbone``.
    """
    modules = dict(model.named_modules())
    found = {name for name, module in modules.items() if hasattr(module, 'get_layer_depth')} or {
        name for name in modules if name.rpartition('.')[2] == 'backbone'
    }
    return {name: modules[name] for name in modules if name in found and not _parents(name) & found}


def _parents(name: str) -> set[str]:
    """Such as ``{'', 'student'}`` of ``'student.backbone'``."""
    parts = name.split('.') if name else []
    return {'.'.join(parts[:i]) for i in range(len(parts))}
