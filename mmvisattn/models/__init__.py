from . import backbones, heads, necks
from .backbones import *  # noqa: F403  the networks, named once in the lists of their packages
from .heads import *  # noqa: F403
from .necks import *  # noqa: F403

__all__ = [*backbones.__all__, *heads.__all__, *necks.__all__]
