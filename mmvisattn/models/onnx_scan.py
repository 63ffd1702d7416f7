"""The selective scan as the standard operator ``Scan`` of ONNX, which needs neither torch nor a compiler to run."""

from collections.abc import Callable
from typing import Any

import mmvisattn.ops.selective_scan  # noqa: F401  registers the operator

import torch

from ..errors import UserError


def translations() -> dict[Callable, Callable]:
    """What ``torch.onnx.export`` takes as ``custom_translation_table``."""
    return {torch.ops.mmvisattn.selective_scan.default: selective_scan}


def selective_scan(u: Any, delta: Any, A: Any, B: Any, C: Any, backend: str, save_states: bool) -> tuple[Any, Any]:
    """Record the scan, token by token, with the state as what is carried on.

    Args:
        u (ir.Value): Input sequence (B, D, L).
        delta (ir.Value): Step sizes (B, D, L).
        A (ir.Value): Rates of the state (D, N).
        B (ir.Value): Input weights (B, N, L).
        C (ir.Value): Output weights (B, N, L).
        backend (str): Without a meaning here.
        save_states (bool): Whether the graph is to have a backward, which those of ONNX do not.

    Returns:
        tuple[ir.Value, ir.Value]: Output sequence (B, D, L), and no states, (0, B, N, D).

    Raises:
        UserError: If the network is in another type than float32.
    """
    import onnx_ir as ir
    from onnxscript import opset18

    op: Any = opset18  # its types know no graph that is being built

    types = {x.dtype for x in (u, delta, A, B, C)}
    if types != {ir.DataType.FLOAT}:
        raise UserError(
            f'the selective scan (`mmvisattn::selective_scan`) has inputs of the types {sorted(map(str, types))}; '
            'export a network in float32, without autocast'
        )
    last, first = op.Constant(value_ints=[-1]), op.Constant(value_ints=[1])
    sizes = op.Concat(op.Shape(u, start=0, end=2), op.Shape(A, start=1, end=2), axis=0)
    start = op.Expand(op.Constant(value_float=0.0), sizes)  # (B, D, N)
    over_time = [op.Transpose(x, perm=[2, 0, 1]) for x in (u, delta, B, C)]

    names = ('state', 'u_t', 'delta_t', 'B_t', 'C_t')
    state, u_t, delta_t, B_t, C_t = values = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
        for name, shape in zip(names, [None, *(None,) * 4])
    ]
    nodes = []

    def add(kind: str, *inputs: Any) -> Any:
        nodes.append(ir.Node('', kind, inputs, num_outputs=1))
        nodes[-1].outputs[0].name = f'step_{len(nodes)}'
        return nodes[-1].outputs[0]

    decay = add('Exp', add('Mul', add('Unsqueeze', delta_t, last), A))  # (B, D, N)
    new = add('Mul', add('Unsqueeze', add('Mul', delta_t, u_t), last), add('Unsqueeze', B_t, first))
    following = add('Add', add('Mul', decay, state), new)
    y_t = add('Squeeze', add('MatMul', following, add('Unsqueeze', C_t, last)), last)  # (B, D)
    for output in (following, y_t):
        output.type = ir.TensorType(ir.DataType.FLOAT)
    body = ir.Graph(values, [following, y_t], nodes=nodes, name='selective_scan_step', opset_imports={'': 18})

    end = op.Scan(start, *over_time, body=body, num_scan_inputs=4)
    end.producer().resize_outputs(2)  # the number of outputs is open in the operator's definition
    _, y = end.producer().outputs
    y.type = ir.TensorType(ir.DataType.FLOAT)
    none = op.Expand(start, op.Concat(op.Constant(value_ints=[0]), op.Shape(start), axis=0))
    return op.Transpose(y, perm=[1, 2, 0]), op.Transpose(none, perm=[0, 1, 3, 2])
