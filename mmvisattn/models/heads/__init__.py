from .class_presence_head import ClassPresenceHead

__all__ = ['ClassPresenceHead']
