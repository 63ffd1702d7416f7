"""Networks as graphs, of ``torch.export`` and of ONNX, for images of any size; and what a network can know of that.

``torch.onnx.export`` tries several ways to record a network, the compiler among them; the answers hold in all of them.
"""

import contextlib
import inspect
import io
import itertools
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import UserError
from ..ops.common import is_exported, is_open

__all__ = ['is_exported', 'is_exported_to_onnx', 'is_open', 'record', 'size_step', 'write_onnx']

MAX_BATCH = 1024
LARGE = 512  # pixels a side, of an example
# Conditions become checks of the graph in place of limits to the sizes that it takes.
DEFERRED = 'prefer_deferred_runtime_asserts_over_guards'


@torch.compiler.assume_constant_result
def is_exported_to_onnx() -> bool:
    """Whether the graph is to be one of ONNX."""
    return torch.onnx.is_in_onnx_export()


def size_step(network: nn.Module) -> int:
    """What heights and widths of a graph of this network are to be multiples of, if they are open."""
    return math.lcm(*(getattr(module, 'size_step', 1) for module in network.modules()))


def record(
    network: nn.Module,
    images: Tensor,
    open_size: bool = True,
    open_batch: bool = True,
    step: int | None = None,
    smallest: int = 256,
    largest: int = 4096,
) -> ExportedProgram:
    """Record a network in evaluation mode with :func:`torch.export.export`.

    Args:
        network (nn.Module): Takes images (B, channels, H, W), and returns a tensor or a tuple of tensors.
        images (Tensor): An example, of an admissible size; where that is open, channels and type count.
        open_size (bool): Leave height and width open. Defaults to True.
        open_batch (bool): Leave the number of images open. Defaults to True.
        step (int, optional): What open heights and widths are multiples of. Defaults to what the network needs.
        smallest (int): Least open height and width in pixels. Defaults to 256.
        largest (int): Greatest open height and width in pixels. Defaults to 4096.

    Returns:
        ExportedProgram: The graph with the weights.

    Raises:
        UserError: If the network, this torch or the example does not allow it.
    """
    step = step or size_step(network)
    dims: dict[int, Any] = {}
    if open_batch:
        dims[0] = Dim('batch', min=1, max=MAX_BATCH)
        images = images.expand(max(len(images), 2), -1, -1, -1)  # what is recorded with one image is for one
    if open_size:
        if any(n % step or not smallest <= n <= largest for n in images.shape[2:]):
            raise UserError(
                f'the example is of {images.shape[2]}×{images.shape[3]} pixels (H×W); give sides from {smallest} to '
                f'{largest} that are multiples of {step}'
            )
        images = images.new_zeros(*images.shape[:2], *_unlike_sides(images.shape[2:], step, smallest, largest))
        for axis, name in ((2, 'height'), (3, 'width')):
            dims[axis] = _multiple(name, step, smallest, largest)
    options: dict[str, Any] = {}
    if DEFERRED in inspect.signature(torch.export.export).parameters:
        options[DEFERRED] = True
    elif open_size:
        raise UserError(
            f'torch {torch.__version__} records no graph of open height and width; fix them (--fixed-size, '
            '`open_size=False`), or update torch'
        )
    with torch.no_grad(), _quiet():
        # A copy of the example: what it shares with others would be recorded.
        program = torch.export.export(network.eval(), (images.clone(),), dynamic_shapes=(dims or None,), **options)
    _drop_checks_of_one(program)
    return program


def _unlike_sides(given: Sequence[int], step: int, smallest: int, largest: int) -> Sequence[int]:
    """Sides of an example that have nothing in common by chance, which would be taken for a rule; or the given ones."""
    # And none so small that the coarsest levels of a pyramid have one row.
    counts = range(-(-max(smallest, min(LARGE, largest // 2)) // step), largest // step + 1)
    primes = (n for n in counts if n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1)))
    sides = [step * n for n in itertools.islice(primes, 2)]
    return sides if len(sides) == 2 else given


def _multiple(name: str, step: int, smallest: int, largest: int) -> Any:
    return (
        step * Dim(name, min=-(-smallest // step), max=largest // step)
        if step > 1
        else Dim(name, min=smallest, max=largest)
    )


def _drop_checks_of_one(program: ExportedProgram) -> None:
    """Leave out the checks that a number is not one.

    They come of how torch sees memory (with one row, strides do not matter), and nothing in the graph depends on them.
    """
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default and 'expression Ne(' in str(node.args[1]):
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def write_onnx(
    program: ExportedProgram,
    path: Path,
    output_names: Sequence[str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a recorded network as a file of ONNX, weights within (beyond 2 GiB beside it).

    Args:
        program (ExportedProgram): The network, see :func:`record`.
        path (Path): The file.
        output_names (Sequence[str], optional): Names of the outputs. Defaults to those of the graph.
        notes (Mapping[str, str], optional): What the file says of itself, as ``metadata_props``.

    Raises:
        UserError: If an operator has no form in ONNX.
    """
    from .onnx_scan import translations

    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=['images'],
                output_names=list(output_names) if output_names else None,
                custom_translation_table=translations(),
            )
    except torch.onnx.errors.OnnxExporterError as error:
        told = re.search(r'No ONNX function found for (\S+?)\.? Failure|No ONNX function found for (\S+)', str(error))
        cause = _cause(error)
        if isinstance(cause, UserError):
            raise cause from error
        if not told:
            raise
        raise UserError(
            f'ONNX has no form of the operator {told[1] or told[2]}; export with `torch-export`, or the part of the '
            'network before it'
        ) from error
    assert exported is not None
    for key, value in (notes or {}).items():
        exported.model.metadata_props[key] = value
    exported.save(path)


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress that the exporter prints, and its warnings about packages that it does not need."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'torch.export', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
