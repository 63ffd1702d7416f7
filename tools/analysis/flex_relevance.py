"""What the relevances that may drive FlexAttention's selection point at, and how well their estimates rank tokens.

For each layer that selects and each relevance, over pictures of the test set: Spearman's rank correlation of the
estimate with the exact relevance, which takes the whole attention map; the share of the chosen cells that both choose;
and, if the pictures have boxes, the share of a box that lies in the cells chosen by the estimate and by the exact
relevance, as a mean over boxes. Cells taken by chance would cover as large a share as is chosen.

Example:
    python tools/analysis/flex_relevance.py CONFIG CHECKPOINT --images 32
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count

from mmvisattn import cli
from mmvisattn.errors import UserError
from mmvisattn.models.backbones import FlexViT
from mmvisattn.models.layers.hierarchical_attention import attention_map
from mmvisattn.models.layers.selection import (
    ESTIMATES,
    Relevance,
    TokenSelector,
    attention_contrast,
    received_attention,
)

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of a model with FlexViT or FlexAttentionNeck')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--images', type=int, default=32, help='how many pictures; default: 32')
    cli.add_runner_arguments(parser)
    return parser.parse_args(argv)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of each row: (B, N) and (B, N) → (B,)."""
    ranks = [x.argsort(-1).argsort(-1).double() for x in (a, b)]
    centred = [rank - rank.mean(-1, keepdim=True) for rank in ranks]
    return torch.cosine_similarity(*centred, dim=-1)


def covered(boxes: Tensor, mask: Tensor, side: tuple[float, float]) -> Tensor:
    """The share of each box that lies in chosen cells.

    Args:
        boxes (Tensor): Left, top, right and bottom in pixels, (boxes, 4).
        mask (Tensor): True for the chosen cells, (rows, columns).
        side (tuple[float, float]): Height and width of a cell in pixels.

    Returns:
        Tensor: (boxes,)
    """
    left, top, right, bottom = boxes.double().unsqueeze(-1).unbind(1)  # (boxes, 1)

    def overlap(start: Tensor, end: Tensor, count: int, side: float) -> Tensor:
        edges = torch.arange(count + 1, device=boxes.device) * side
        return (torch.minimum(end, edges[1:]) - torch.maximum(start, edges[:-1])).clamp(min=0)  # (boxes, count)

    rows, columns = (
        overlap(*ends, *size)
        for *ends, size in ((top, bottom, (mask.shape[0], side[0])), (left, right, (mask.shape[1], side[1])))
    )
    area = ((right - left) * (bottom - top)).squeeze(1)
    return torch.einsum('nr,rc,nc->n', rows, mask.double(), columns) / area


def boxes_of(sample: BaseDataElement) -> Tensor:
    """The annotated boxes of a sample in pixels of the network's input, (boxes, 4); none if it has no boxes."""
    instances = sample.get('gt_instances')
    if instances is None or 'bboxes' not in instances:
        return torch.zeros(0, 4)
    # Test pipelines annotate the picture as it was before it was resized.
    boxes = getattr(instances.bboxes, 'tensor', instances.bboxes)
    return boxes * boxes.new_tensor(sample.scale_factor).repeat(2)


class Recorder:
    """Compare the relevances whenever a layer estimates that of its tokens.

    Args:
        model (nn.Module): The detector or segmentor.

    Raises:
        UserError: If it has no FlexAttention.
    """

    def __init__(self, model: nn.Module) -> None:
        owners = [m for m in model.modules() if isinstance(getattr(m, 'selector', None), TokenSelector)]
        if not owners:
            raise UserError('the model has no FlexAttention; give the config of a FlexViT or FlexAttentionNeck')
        # By layer and relevance: rank correlation and share of cells, an entry a picture; coverage, an entry a box.
        self.agreement: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
        self.coverage: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
        self.chosen: list[float] = []
        self.boxes: list[Tensor] = []
        self.image_size = (0, 0)
        for owner in owners:
            owner.register_forward_pre_hook(self._start)
            owner.relevance.register_forward_hook(partial(self._compare, owner))
        getattr(model, 'backbone', model).register_forward_pre_hook(self._note_image)

    def annotate(self, samples: Iterable[BaseDataElement]) -> None:
        """Give the samples of the next forward, for their boxes."""
        self.boxes = [boxes_of(sample) for sample in samples]

    def _note_image(self, backbone: nn.Module, args: tuple) -> None:
        self.image_size = tuple(args[0].shape[-2:])

    def _start(self, owner: nn.Module, args: tuple) -> None:
        hierarchical = sum(block.attn.kv_high is not None for block in owner.blocks)
        self.layers = count(len(owner.blocks) - hierarchical)  # the first selection is made by the last plain layer

    def _compare(self, owner: nn.Module, relevance: Relevance, args: tuple, out: Tensor) -> None:
        q, k, grid = args[:3]
        valid = args[3] if len(args) > 3 else None
        name = f'{type(owner).__name__} layer {next(self.layers)}'
        attention = attention_map(q, k)
        exact = {
            'contrast': attention_contrast(attention.mT, grid, valid),
            'received': received_attention(attention),
        }
        if isinstance(owner, FlexViT):
            token = (owner.patch_size * owner.zoom,) * 2
        else:
            token = tuple(n / m for n, m in zip(self.image_size, grid))
        side = tuple(n * owner.cell_size for n in token)
        for kind, function in ESTIMATES.items():
            pair = function(q, k, grid, valid), exact[kind]
            masks = [self._cells(relevance, owner, grid, valid) for relevance in pair]
            shared = (masks[0] & masks[1]).sum((1, 2)) / masks[1].sum((1, 2)).clamp(min=1)
            self.agreement[name, kind].append(torch.stack([rank_correlation(*pair), shared.double()], 1))
            for boxes, *of_image in zip(self.boxes, *masks):
                shares = [covered(boxes.to(q.device), mask, side) for mask in of_image]
                self.coverage[name, kind].append(torch.stack(shares, 1))
            self.chosen.append(masks[0].double().mean().item())

    @staticmethod
    def _cells(relevance: Tensor, owner: nn.Module, grid: tuple[int, int], valid: Tensor | None) -> Tensor:
        shape = tuple(-(-n // owner.cell_size) for n in grid)
        return owner.selector(relevance.unflatten(1, grid), valid).mask(shape)

    def table(self) -> list[str]:
        """The figures as lines of Markdown."""
        lines = [
            '| layer | relevance | rank correlation, mean (least) | cells shared | of a box: estimate | exact |',
            '|---|---|---|---|---|---|',
        ]
        for (name, kind), figures in self.agreement.items():
            correlation, shared = torch.cat(figures).unbind(1)
            shares = torch.cat(self.coverage[name, kind]) if self.coverage[name, kind] else torch.zeros(0, 2)
            of_box = [f'{share:.1%}' for share in shares.mean(0)] if len(shares) else ['–', '–']
            lines.append(
                f'| {name} | {kind} | {correlation.mean():.3f} ({correlation.min():.3f}) | {shared.mean():.1%} | '
                f'{" | ".join(of_box)} |'
            )
        return lines


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the pictures through the model and print the table."""
    args = parse_args(argv)
    cfg = cli.prepare(args)
    cli.check_file(args.checkpoint, 'checkpoint')
    cli.check_data(cfg, 'test_dataloader')
    cfg.load_from = args.checkpoint
    cfg.resume = False
    runner = cli.build_runner(cfg)
    dataloader = runner.build_dataloader(cfg.test_dataloader)
    runner.call_hook('before_run')
    runner.load_or_resume()
    recorder = Recorder(runner.model)
    runner.model.eval()
    seen = 0
    with torch.no_grad():
        for data in dataloader:
            recorder.annotate(data['data_samples'])
            seen += len(runner.model.test_step(data))
            if seen >= args.images:
                break

    share = sum(recorder.chosen) / len(recorder.chosen)
    print(f'{seen} pictures, {share:.1%} of the cells chosen; {args.config}\n')
    print(*recorder.table(), sep='\n')


if __name__ == '__main__':
    main()
