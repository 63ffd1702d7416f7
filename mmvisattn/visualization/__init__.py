"""Pictures of what the networks look at."""

from .cells import DIMMED, draw_cells, draw_layers
from .panels import CAPTION_HEIGHT, GAP, PANEL_SIZE, stack_rows
from .receptive_field import effective_receptive_field
from .recorder import KINDS, Look, Map, Recorder

__all__ = [
    'CAPTION_HEIGHT',
    'DIMMED',
    'GAP',
    'KINDS',
    'PANEL_SIZE',
    'Look',
    'Map',
    'Recorder',
    'draw_cells',
    'draw_layers',
    'effective_receptive_field',
    'stack_rows',
]
