from .defocus_mamba import DefocusMamba
from .defocus_retnet import DefocusRetNet
from .defocus_vit import DefocusViT
from .fcvit import FCViT
from .flex_vit import FlexViT

__all__ = ['DefocusMamba', 'DefocusRetNet', 'DefocusViT', 'FCViT', 'FlexViT']
