"""How much memory labels of a picture take while they are made, and how much there is."""

from pathlib import Path
from typing import Any

import torch

from ..errors import UserError

BYTES = 4  # of a value for each class and pixel, which mmseg makes at the size of the picture


def check_labels_fit(model: Any, height: int, width: int, others: int = 0) -> None:
    """Refuse a picture whose labels cannot be made in the memory that is free.

    Without it Linux kills the process, with nothing said. The network itself needs memory beside.

    Args:
        model (Any): Segmentor of mmseg; other models are not checked.
        height (int): Of the picture in pixels.
        width (int): Of the picture in pixels.
        others (int): Bytes a pixel on the CPU for what is done with the labels. Defaults to 0.

    Raises:
        UserError: With what is needed and what is free.
    """
    classes = getattr(model, 'out_channels', None)
    if not isinstance(classes, int):
        return
    device = next(model.parameters()).device
    needed = height * width * (classes * BYTES + (others if device.type == 'cpu' else 0))
    free = free_memory(device)
    if free is not None and needed > free:
        raise UserError(
            f'labels of {width}×{height} pixels and {classes} classes take {needed / 2**30:.1f} GiB of memory, and '
            f'{free / 2**30:.1f} are free; cut the picture into tiles: `--slice 1024` of predict.py'
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device, or None where that is not to be told.

    Args:
        device (torch.device): A CPU under Linux, or a CUDA GPU.
    """
    if device.type == 'cuda':
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    information = Path('/proc/meminfo')
    if device.type != 'cpu' or not information.is_file():
        return None
    lines = dict(line.split(':') for line in information.read_text().splitlines())
    return int(lines['MemAvailable'].split()[0]) * 1024
