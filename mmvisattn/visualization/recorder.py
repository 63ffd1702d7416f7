"""What a network looks at, noted by hooks while it works as ever."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..models.backbones import FlexViT
from ..models.backbones.fcvit import GlobalContext
from ..models.layers.selection import Relevance, Selection, TokenSelector
from ..ops.common import at_least_float32
from ..ops.global_context import global_similarity, head_blocks

# What a recorder can note, and of which networks.
KINDS = {
    'similarity': 'FCViT: similarity of each position to the mean of the map, head by head',
    'context': 'FCViT: how much the global context adds at each position',
    'questions': 'FlexAttention: the glance, what each learned question answers to it, and the relevance of all',
    'cells': 'FlexAttention: the cells that are chosen for a close look',
    'features': 'any network: the feature maps of backbone and neck',
}


@dataclass
class Map:
    """Numbers over an image.

    Args:
        kind (str): One of ``KINDS``.
        layer (str): Where in the network it was noted, such as ``'stage 1, block 2, context 1'``.
        head (str): Which of several of that place, such as ``'head 3'``.
        values (np.ndarray): (rows, columns), or boolean of cells; of features (C, rows, columns).
        cell (tuple[float, float]): Height and width of a position in pixels of the image that the network was given.
    """

    kind: str
    layer: str
    head: str
    values: np.ndarray
    cell: tuple[float, float]


@dataclass
class Look:
    """What was noted in one forward of the backbone.

    Args:
        image (Tensor): Its input, normalised, (C, H, W).
        glance (Tensor | None): The shrunk image that FlexViT glances at, (C, H', W').
        maps (list[Map]): What was noted, in the order in which it was computed.
    """

    image: Tensor
    glance: Tensor | None = None
    maps: list[Map] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Map]:
        """The maps of one kind."""
        return [one for one in self.maps if one.kind == kind]


class Recorder:
    """Note maps of a network in forwards of batches of one image; a crop of an image is an image here.

    Args:
        model (nn.Module): A backbone, or a detector or segmentor with ``backbone`` and maybe ``neck``.
        kinds (Collection[str], optional): What to note, of ``KINDS``. Defaults to all that the network has.

    Raises:
        UserError: If the network has nothing of a kind that is named.
    """

    def __init__(self, model: nn.Module, kinds: Collection[str] | None = None) -> None:
        self.looks: list[Look] = []
        self.kinds = available_kinds(model) if kinds is None else list(kinds)
        for kind in self.kinds:
            if kind not in available_kinds(model):
                raise UserError(
                    f'the network has no {kind!r} ({KINDS[kind]}); of this one there are '
                    f'{", ".join(available_kinds(model))}'
                )
        backbone = getattr(model, 'backbone', model)
        self.handles = [backbone.register_forward_pre_hook(self._begin)]
        if {'similarity', 'context'} & set(self.kinds):
            for name, module in backbone.named_modules():
                if isinstance(module, GlobalContext):
                    self.handles.append(module.register_forward_hook(self._note_context(context_name(name))))
        if {'questions', 'cells'} & set(self.kinds):
            for network in flex_networks(model):
                self.handles += [
                    network.relevance.register_forward_hook(self._note_questions),
                    network.selector.register_forward_hook(self._note_selection),
                    network.register_forward_hook(self._note_flex),
                ]
        if 'features' in self.kinds:
            self.handles.append(backbone.register_forward_hook(self._note_features('backbone')))
            neck = getattr(model, 'neck', None)
            if neck is not None:
                self.handles.append(neck.register_forward_hook(self._note_features('neck')))

    def __enter__(self) -> 'Recorder':
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def take(self) -> list[Look]:
        """What was noted since the last time."""
        looks, self.looks = self.looks, []
        return looks

    def _begin(self, backbone: nn.Module, args: tuple) -> None:
        self.looks.append(Look(args[0][0].detach()))

    def _add(self, kind: str, layer: str, head: str, values: Tensor, cell: tuple[float, float] | None = None) -> None:
        if kind in self.kinds:
            height, width = self.looks[-1].image.shape[1:]
            cell = cell or (height / values.shape[-2], width / values.shape[-1])
            array = values.detach().cpu()
            array = array if array.dtype == torch.bool else array.float()
            self.looks[-1].maps.append(Map(kind, layer, head, array.numpy(), cell))

    def _note_context(self, layer: str) -> Any:
        def note(module: GlobalContext, args: tuple[Tensor], out: Tensor) -> None:
            x = args[0][:1].detach()
            for number, values in enumerate(context_similarity(module, x)[0], 1):
                self._add('similarity', layer, f'head {number}', values)
            self._add('context', layer, 'all heads', (out[:1].detach() - x)[0].float().norm(dim=0))

        return note

    def _note_questions(self, relevance: Relevance, args: tuple, logits: Tensor) -> None:
        low, grid = args[:2]
        answers = at_least_float32(relevance.questions(relevance.norm(low[:1])))[0].T.unflatten(1, grid)
        self.pending = [('questions', f'question {i}', answer) for i, answer in enumerate(answers.detach(), 1)]
        self.pending.append(('questions', 'relevance', logits[0]))

    def _note_selection(self, selector: TokenSelector, args: tuple, selection: Selection) -> None:
        self.pending.append(('cells', 'chosen', selection.mask(args[0].shape[1:])[0]))

    def _note_flex(self, network: Any, args: tuple, outs: tuple[Tensor, ...]) -> None:
        look = self.looks[-1]
        if isinstance(network, FlexViT):
            token: tuple[float, ...] = (network.patch_size,) * 2
            # As in the forward, zeros fill up the last cells.
            side = network.patch_size * network.zoom * network.cell_size
            height, width = look.image.shape[1:]
            padded = F.pad(look.image, (0, -width % side, 0, -height % side))
            look.glance = F.avg_pool2d(padded[None], network.zoom)[0]
            layer = f'FlexViT, layer {network.num_glance_layers}'
        else:
            # The fine level spans the image; of sizes that do not divide it, to within a token.
            token = tuple(n / m for n, m in zip(look.image.shape[1:], outs[network.high_level].shape[2:]))
            layer = f'{type(network).__name__}, layer 1'
        for kind, head, values in self.pending:
            times = network.zoom * (network.cell_size if kind == 'cells' else 1)
            self._add(kind, layer, head, values, (token[0] * times, token[1] * times))

    def _note_features(self, part: str) -> Any:
        def note(module: nn.Module, args: tuple, outs: Any) -> None:
            for level, values in enumerate(feature_maps(outs)):
                self._add('features', f'{part}, level {level}', 'all channels', values[0])

        return note


def feature_maps(outs: Any) -> list[Tensor]:
    """The maps (B, C, H, W) among what a backbone or neck gives."""
    outs = [outs] if isinstance(outs, Tensor) else outs.values() if isinstance(outs, dict) else outs
    return [out for out in outs if isinstance(out, Tensor) and out.dim() == 4]


def flex_networks(model: nn.Module) -> Iterator[Any]:
    """The FlexViTs and FlexAttentionNecks in a model."""
    return (module for module in model.modules() if isinstance(getattr(module, 'selector', None), TokenSelector))


def available_kinds(model: nn.Module) -> list[str]:
    """Those of ``KINDS`` that a model has."""
    kinds = ['features']
    if any(isinstance(module, GlobalContext) for module in model.modules()):
        kinds += ['similarity', 'context']
    if any(flex_networks(model)):
        kinds += ['questions', 'cells']
    return [kind for kind in KINDS if kind in kinds]


def context_name(name: str) -> str:
    """What to call a global context of FCViT by the name of its module."""
    found = re.search(r'network\.(\d+)\.(\d+)\.token_mixer\.gc(\d)$', name)
    if not found:
        return name
    part, block, number = map(int, found.groups())
    return f'stage {part // 2 + 1}, block {block + 1}, context {number}'


@torch.no_grad()
def context_similarity(module: GlobalContext, x: Tensor) -> Tensor:
    """The signed weights that a global context gives to each position.

    Args:
        module (GlobalContext): The context.
        x (Tensor): What enters it, (B, C, H, W).

    Returns:
        Tensor: (B, heads, H, W), in float32 at least.
    """
    tokens = x.flatten(2).transpose(1, 2)  # (B, H·W, C)
    num_heads = len(module.rescale_weight)
    heads = head_blocks(num_heads, x.shape[1] // num_heads, x)
    weights = global_similarity(tokens, tokens.mean(1), heads, module.rescale_weight, module.rescale_bias)
    return weights.transpose(1, 2).unflatten(2, x.shape[2:])
