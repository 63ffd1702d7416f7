"""Which pixels a position of a feature map depends on, and how much."""

import torch
from torch import Tensor, nn

from .recorder import feature_maps


def effective_receptive_field(
    network: nn.Module,
    image: Tensor,
    level: int = -1,
    position: tuple[int, int] | None = None,
    draws: int = 4,
    seed: int = 0,
) -> Tensor:
    """Norm of the derivative of a position by each pixel, the network being as it is at inference.

    After `Understanding the Effective Receptive Field in Deep Convolutional Neural Networks
    <https://arxiv.org/abs/1701.04128>`_ (Luo et al., 2016), who sum over the channels of the map. Behind a norm over
    channels such a sum does not change at all, so the Frobenius norm of the derivative is taken, estimated by
    gradients in random directions.

    Args:
        network (nn.Module): A backbone, whose mode stays as it is.
        image (Tensor): (C, H, W).
        level (int): Number of the feature map, from 0. Defaults to the last.
        position (tuple[int, int], optional): Row and column in the map. Defaults to its middle.
        draws (int): Number of random directions. Defaults to 4.
        seed (int): Seed of the directions. Defaults to 0.

    Returns:
        Tensor: (H, W), float32.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        leaf = image.detach().clone().requires_grad_()
        values = feature_maps(network(leaf[None]))[level][0]  # (C, H', W')
        row, column = position or (values.shape[1] // 2, values.shape[2] // 2)
        target = values[:, row, column]
        square = torch.zeros(image.shape[1:], device=image.device)
        for number in range(draws):
            direction = torch.randn(target.shape, generator=generator).to(target)
            (grad,) = torch.autograd.grad(target, leaf, direction, retain_graph=number + 1 < draws)
            square += grad.float().square().sum(0)
    return (square / draws).sqrt()


def side_of_mass(field: Tensor, share: float) -> int:
    """Side of the smallest square around the largest value that holds a share of the sum of a field.

    Args:
        field (Tensor): Non-negative, (H, W).
        share (float): Above 0 and up to 1.

    Returns:
        int: An odd number of pixels; the square may reach beyond the field.
    """
    row, column = divmod(int(field.argmax()), field.shape[1])
    rows = (torch.arange(field.shape[0]) - row).abs()
    columns = (torch.arange(field.shape[1]) - column).abs()
    distance = torch.maximum(rows[:, None], columns[None])
    mass = torch.zeros(int(distance.max()) + 1, dtype=torch.float64)
    mass.index_add_(0, distance.flatten(), field.detach().cpu().double().flatten())
    radius = int((mass.cumsum(0) < share * mass.sum() * (1 - 1e-12)).sum())
    return 2 * radius + 1
