from . import backbones, necks
from .class_presence_head import ClassPresenceHead

__all__ = ['ClassPresenceHead', 'backbones', 'necks']
