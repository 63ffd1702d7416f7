"""Pictures of what the networks look at."""

from .cells import CAPTION_HEIGHT, DIMMED, GAP, PANEL_SIZE, draw_cells, draw_layers, stack_rows

__all__ = ['CAPTION_HEIGHT', 'DIMMED', 'GAP', 'PANEL_SIZE', 'draw_cells', 'draw_layers', 'stack_rows']
