"""What the tools of this folder measure with: time and memory of several steps, side by side in one run."""

import argparse
import ctypes
import platform
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import mmvisattn

import numpy as np
import timm
import torch
from torch.utils.flop_counter import register_flop_formula, sdpa_flop_count

WARM_UP_ROUNDS = 2
M_MMAP_THRESHOLD = -3  # of mallopt(3): bytes from which on a block has pages of its own

with suppress(RuntimeError):  # newer torch has this formula itself

    @register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
    def _cpu_attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *args, **kwargs) -> int:
        return sdpa_flop_count(query, key, value)


def parse_size(text: str) -> tuple[int, int]:
    """``800x1344`` as height and width."""
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if not match:
        raise argparse.ArgumentTypeError(f'{text!r} is not of the form HxW, in pixels, such as 800x1344')
    return int(match[1]), int(match[2])


def parse_count(text: str) -> int:
    """An integer from 1."""
    if not re.fullmatch(r'[1-9]\d*', text):
        raise argparse.ArgumentTypeError(f'{text!r} is not an integer from 1')
    return int(text)


def parse_device(text: str) -> torch.device:
    """A device that torch can compute on here."""
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f'torch knows no device {text!r}; give cpu, cuda or cuda:N') from None
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f'torch sees {torch.cuda.device_count() or "no"} GPU, not {text!r}; give cpu')
    return device


def parse_output(text: str) -> Path:
    """A file that can be written when all is measured."""
    if not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f'{text!r} cannot be written: there is no folder {str(Path(text).parent)!r}')
    return Path(text)


def peak_memory(step: Callable[[], object], device: torch.device) -> float:
    """Largest memory of a step above what was held before, in MiB; not a number where it cannot be told."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:  # what Linux and glibc offer
        ctypes.CDLL(None).malloc_trim(0)  # what earlier steps freed but the process still holds would be used first
        Path('/proc/self/clear_refs').write_text('5')  # start the peak anew
        before = _status_kib('VmRSS')
        step()
        return (_status_kib('VmHWM') - before) / 2**10
    except (AttributeError, OSError):
        return float('nan')


def return_pages() -> None:
    """Have what is allocated from here on leave the process as it is freed, so that a peak is what was in use.

    By itself glibc keeps freed blocks below 32 MiB, and those of other sizes come to lie beside them. Allocating takes
    more time this way.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**18)


def _status_kib(key: str) -> int:
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


# What `--clock` names: seconds of the day, or those of the processor, all threads together.
CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


def times_in_turn(
    steps: dict[str, Callable[[], object]], rounds: int, device: torch.device, clock: str = 'wall'
) -> dict[str, list[float]]:
    """Seconds of each step, round by round, A B C A B C …, so that a noisy machine hits all alike; warmed up."""
    now = CLOCKS[clock]
    times = {name: [] for name in steps}
    for i in range(WARM_UP_ROUNDS + rounds):
        for name, step in steps.items():
            _wait(device)
            start = now()
            step()
            _wait(device)
            if i >= WARM_UP_ROUNDS:
                times[name].append(now() - start)
    return times


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent e of the power law y ∝ xᵉ that fits best."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """What figures depend on beside the networks: processor, threads, versions; and the date."""
    return {
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else _processor(),
        'threads': torch.get_num_threads(),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'timm': timm.__version__,
        'mmvisattn': mmvisattn.__version__,
        'date': time.strftime('%Y-%m-%d'),
    }


def _processor() -> str:
    try:
        named = re.search(r'^model name\s*: (.*)$', Path('/proc/cpuinfo').read_text(), re.MULTILINE)
    except OSError:
        named = None
    return named[1] if named else platform.processor() or platform.machine()
