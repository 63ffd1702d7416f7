from . import backbones, necks
from .backbones import *  # noqa: F403  the networks, named once in the lists of their packages
from .class_presence_head import ClassPresenceHead
from .necks import *  # noqa: F403

__all__ = ['ClassPresenceHead', *backbones.__all__, *necks.__all__]
