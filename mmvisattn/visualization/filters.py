"""The bandpass filters of De-focus attention, in time and in frequency."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..models.backbones import defocus_mamba
from ..models.layers import BandpassFilter
from .over_focus import frequency_response


def bandpass_filters(network: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The filters of a network, layer by layer.

    Of De-focus Mamba a step δ comes from the token; here it is that of the bias alone, and the rate the mean over the
    channels. Without decay the rate is 0, without rotation the frequency.

    Args:
        network (nn.Module): De-focus Mamba, ViT or RetNet, or what holds one.

    Returns:
        Iterator[tuple[str, Tensor, Tensor]]: Name of the layer, decay λ ≤ 0 of each component and its frequency θ in
        radians a token, of shapes that are broadcast: (heads, 1) and (pairs,), or (state entries,) both.
    """
    layer = 0
    for module in network.modules():
        if isinstance(module, BandpassFilter):
            layer += 1
            rate, freq = module.rate(), module.freq
            yield (
                f'layer {layer}',
                (torch.zeros(1) if rate is None else rate.detach().cpu())[:, None],
                torch.zeros(1) if freq is None else freq.detach().cpu() / module.rope_scale,
            )
        elif isinstance(module, defocus_mamba.Mixer):
            layer += 1
            delta = F.softplus(module.dt_proj.bias.detach().float())[:, None] / module.delta_scale
            rate = -(delta * module.A_log.detach().float().exp()).mean(0)
            yield f'layer {layer}', rate.cpu(), module.freq.detach().cpu() / module.rope_scale


def response_in_time(rate: Tensor, freq: Tensor, length: int) -> Tensor:
    """``e^{λt} cos θt`` for t from 0: the shape to which both are broadcast, with an axis of ``length``, float64."""
    steps = torch.arange(length, dtype=torch.float64)
    return (rate.double().unsqueeze(-1) * steps).exp() * (freq.double().unsqueeze(-1) * steps).cos()


def draw_filters(network: nn.Module, path: Path, length: int = 256, components: int = 8, layers: str = '') -> None:
    """Draw the filters of the first, middle and last layer, in time on the left and in frequency on the right.

    Args:
        network (nn.Module): See :func:`bandpass_filters`.
        path (Path): The picture.
        length (int): Number of tokens. Defaults to 256.
        components (int): How many to draw of a layer, evenly spread. Defaults to 8.
        layers (str): Of the layers that have this in their name. Defaults to ``''``, of all.

    Raises:
        UserError: If no layer has.
    """
    from matplotlib.figure import Figure

    filters = [one for one in bandpass_filters(network) if layers in one[0]]
    if not filters:
        names = [name for name, *_ in bandpass_filters(network)]
        raise UserError(f'--layers {layers!r}: no filter is in a layer of such a name; there are {", ".join(names)}')
    shown = [filters[i] for i in sorted({0, len(filters) // 2, len(filters) - 1})]
    figure = Figure(figsize=(11, 2.6 * len(shown)), layout='constrained')
    omega = torch.linspace(0, torch.pi, 512, dtype=torch.float64)
    for (name, rate, freq), (time, frequency) in zip(shown, figure.subplots(len(shown), 2, squeeze=False)):
        rates, freqs = (x.flatten() for x in torch.broadcast_tensors(rate, freq))
        picked = np.unique(np.linspace(0, len(rates) - 1, components).round().astype(int))
        for i in picked:
            label = f'λ {rates[i]:.2g}, θ {freqs[i]:.2g}'
            time.plot(response_in_time(rates[i], freqs[i], length), linewidth=1, label=label)
            frequency.plot(omega, frequency_response(rates[i], freqs[i], omega, length), linewidth=1)
        time.set(title=f'{name}: $e^{{λt}} \\cos θt$', xlabel='tokens ago')
        frequency.set(title='gain', xlabel='radians a token', xlim=(0, torch.pi))
        time.legend(fontsize='xx-small', ncols=2)
    figure.savefig(path, dpi=110)
