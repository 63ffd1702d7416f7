"""Count the parameters, FLOPs and activations of networks, module by module, at any size of one image.

FLOPs are those of matrix products and convolutions as torch's counter has them, two for a multiply-add, and:

- selective scan: seven for each step, channel and state entry (δ·A, its exponential, decay·h, two with B, two with C)
  and one for each step and channel (δ·u); not by `reference` and `mamba_ssm`, which are no operators of ours;
- causal convolution of De-focus Mamba, a sum of shifted maps: two for each tap;
- weighted global context of FCViT: four for each element of the map, not the eightfold of its block-diagonal matrices;
- attention of De-focus ViT: two for each channel of a query and a key that it sees, in both products; fused attention
  would count hidden tokens too, attention in blocks the rest of a block;
- deformable convolution: as a convolution of the same size.

Norms, activation functions, softmax, pooling and interpolation do not count. Activations are the elements of what
convolutions and linear layers put out.

The forward runs on torch's meta device, which computes shapes alone: any size takes a moment. A network that acts on
values, such as the second stage of a detector on its proposals, runs for real, on the CPU and with random weights.

Examples:
    python tools/analysis/get_flops.py configs/fcvit/fcvit-b12_fpn_4xb8-40k_ade20k-512x512.py --sizes 512x512
    python tools/analysis/get_flops.py FCViT:b12 timm:convnext_tiny --depth 0 --sizes 512x512 800x1344
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path

from mmvisattn import cli
from mmvisattn.models.backbones import defocus_vit, fcvit
from mmvisattn.ops.causal_conv import CausalDepthwiseConv1d
from mmvisattn.testing import random_inputs

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import networks


def deform_conv_flops(x: Sequence[int], weight: Sequence[int], *args, out_shape: Sequence[int], **kwargs) -> int:
    """FLOPs of a deformable convolution with weights (C_out, C / groups, k, k)."""
    return 2 * prod(out_shape) * prod(weight[1:])


def attention_flops(attention: defocus_vit.Attention, x: Tensor) -> int:
    """FLOPs of the attention between tokens (B, L, C), without those of the linear layers."""
    batch, length, channels = x.shape
    pairs = length * (length + 1) // 2 if attention.causal else length**2
    return 2 * 2 * batch * pairs * channels


# FLOPs and activations of a module without those of the modules in it, where operators do not tell; from its input.
FORMULAS: dict[type[nn.Module], Callable[[nn.Module, Tensor], tuple[int, int]]] = {
    CausalDepthwiseConv1d: lambda conv, x: (2 * conv.kernel_size[0] * x.numel(), x.numel()),
    defocus_vit.Attention: lambda attention, x: (attention_flops(attention, x), 0),
    fcvit.GlobalContext: lambda context, x: (4 * x.numel(), 0),
}
CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
LAYERS = {F.linear, torch.ops.mmvisattn.depthwise_conv2d, *CONVOLUTIONS}


class CostCounter(TorchFunctionMode):
    """Counts, while it is active, what the forward of a network costs.

    ``parameters``, ``flops`` and ``activations``, the elements put out by layers, are by the name of a module, all that
    lies in it included; ``''`` is the network. ``measured`` tells whether the forward runs for real.

    Args:
        network (nn.Module): The network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.parameters = {
            name: sum(parameter.numel() for parameter in module.parameters())
            for name, module in network.named_modules()
        }
        self.measured = not any(parameter.is_meta for parameter in network.parameters())
        self.flops: Counter[str] = Counter()
        self.activations: Counter[str] = Counter()
        formulas = {torch.ops.torchvision.deform_conv2d: deform_conv_flops}
        self.operators = FlopCounterMode(display=False, custom_mapping=formulas)
        self.running = [('', network)]  # the innermost last
        self.settled = 0
        self.names = {module: name for name, module in network.named_modules()}

    def __enter__(self) -> 'CostCounter':
        # For all modules at once: those with hooks of their own are called where others give their weights alone.
        self.handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave),
        ]
        self.operators.__enter__()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.operators.__exit__(*error)
        self._settle()
        for handle in self.handles:
            handle.remove()

    def __torch_function__(self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        """Note what a layer puts out."""
        out = function(*args, **(kwargs or {}))
        if function in LAYERS:
            self._add(0, out.numel())
        elif function is F.multi_head_attention_forward:  # the four linear layers in it are not seen
            query, key, value = args[:3]
            self._add(0, 2 * query.numel() + key.numel() + value.numel())
        return out

    def _enter(self, module: nn.Module, inputs: tuple) -> None:
        if module in self.names:
            self._settle()
            self.running.append((self.names[module], module))

    def _leave(self, module: nn.Module, inputs: tuple, output: object) -> None:
        if module not in self.names:
            return
        self._settle()
        if type(module) in FORMULAS:
            self._add(*FORMULAS[type(module)](module, inputs[0]))
        self.running.pop()

    def _settle(self) -> None:
        """Attribute the operators since the last time to the innermost module, unless it has a formula."""
        flops = self.operators.get_total_flops()
        if type(self.running[-1][1]) not in FORMULAS:
            self._add(flops - self.settled, 0)
        self.settled = flops

    def _add(self, flops: int, activations: int) -> None:
        parts = self.running[-1][0].split('.')
        for owner in {'', *('.'.join(parts[: i + 1]) for i in range(len(parts)))}:
            self.flops[owner] += flops
            self.activations[owner] += activations


def count(name: str, size: tuple[int, int], part: str = 'model') -> CostCounter:
    """Count what a network costs; the arguments are those of :func:`networks.build`."""
    try:
        return _count_on(torch.device('meta'), name, size, part)
    except RuntimeError:  # torch's word where shapes do not tell; what is wrong for another reason fails again
        return _count_on(torch.device('cpu'), name, size, part)


@torch.no_grad()
def _count_on(device: torch.device, name: str, size: tuple[int, int], part: str) -> CostCounter:
    with device:
        torch.manual_seed(0)
        network = networks.build(name, part, size).eval().requires_grad_(False)
        inputs = random_inputs(network, 1, size, device)
        with CostCounter(network) as counter:
            network(*inputs)
    return counter


def table(costs: dict[tuple[int, int], CostCounter], depth: int) -> Iterator[str]:
    """The lines of a table with one row a module, down to ``depth`` names below the network."""
    columns = ''.join(f' GFLOPs, {height}×{width} | M activations |' for height, width in costs)
    yield f'| module | M parameters |{columns}'
    yield '|---|---|' + '---|---|' * len(costs)
    parameters = next(iter(costs.values())).parameters
    for name, number in parameters.items():
        cells = [(cost.flops[name], cost.activations[name]) for cost in costs.values()]
        if (name.count('.') + bool(name) <= depth) and (number or any(map(any, cells))):
            figures = ''.join(f' {flops / 1e9:.3f} | {activations / 1e6:.2f} |' for flops, activations in cells)
            yield f'| {name or "all"} | {number / 1e6:.3f} |{figures}'


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Count and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks.add_arguments(parser)
    parser.add_argument('--depth', type=int, default=1, help='levels of modules to list, 0 for the sum; default: 1')
    args = parser.parse_args(argv)

    for name in args.names:
        costs = {size: count(name, size, args.part) for size in args.sizes}
        print(f'\n{name}\n')
        print('\n'.join(table(costs, args.depth)))
        if any(cost.measured for cost in costs.values()):
            print('\nCounted by a real forward of a random image, with random weights.')


if __name__ == '__main__':
    main()
