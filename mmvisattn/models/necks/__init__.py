from .flex_attention_neck import FlexAttentionNeck
from .simple_fpn import SimpleFPN

__all__ = ['FlexAttentionNeck', 'SimpleFPN']
