"""What tests and tools share: golden vectors, networks and operators as their formulas say, random inputs."""

from .defocus import attention_inputs, materialising_scan, naive_attention, quadratic_retention, turned
from .fcvit import PlainFCViT, global_context, gradients
from .golden import golden_image, load_golden, load_golden_weights
from .inputs import random_inputs
from .memory import LargestTensor
from .references import REFERENCES, to_reference

__all__ = [
    'LargestTensor',
    'PlainFCViT',
    'REFERENCES',
    'attention_inputs',
    'global_context',
    'golden_image',
    'gradients',
    'load_golden',
    'load_golden_weights',
    'materialising_scan',
    'naive_attention',
    'quadratic_retention',
    'random_inputs',
    'to_reference',
    'turned',
]
