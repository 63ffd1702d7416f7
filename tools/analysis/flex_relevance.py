"""How well the estimate that drives FlexAttention's selection ranks tokens, beside the exact received attention.

For each layer that selects, over pictures of the test set: Spearman's rank correlation of the estimate with the exact
column sums of the attention map, and the share of the cells chosen by the one that the other chooses too. The entropy
of the attention, in parts of its maximum, tells how sharp it is.

Example:
    python tools/analysis/flex_relevance.py CONFIG CHECKPOINT --images 32
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence

from mmvisattn import cli  # first: with it the toolboxes run without a compiled mmcv

# isort: split
import torch
from torch import Tensor, nn

from mmvisattn.errors import UserError
from mmvisattn.models.layers.hierarchical_attention import HierarchicalAttention, hierarchical_attention
from mmvisattn.models.layers.token_selection import (
    TokenSelector,
    estimate_received_attention,
    min_max,
    pool_to_cells,
    received_attention,
)


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


class Recorder:
    """Compare estimate and truth whenever a layer estimates the relevance of its tokens.

    Args:
        model: The detector or segmentor.

    Raises:
        UserError: If it has no FlexAttention.
    """

    def __init__(self, model: nn.Module) -> None:
        owners = [m for m in model.modules() if isinstance(getattr(m, 'selector', None), TokenSelector)]
        if not owners:
            raise UserError('the model has no FlexAttention; give the config of a FlexViT or FlexAttentionNeck')
        self.figures: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for owner in owners:
            for i, block in enumerate(owner.blocks):
                name = f'{type(owner).__name__} layer {i + 1}'
                block.attn.register_forward_pre_hook(self._hook(name, owner.selector, owner.cell_size))

    def _hook(self, name: str, selector: TokenSelector, cell_size: int):
        def compare(attn: HierarchicalAttention, args: tuple) -> None:
            x, num_low, _, angles, grid = args
            if grid is None:
                return
            q, k, v = attn.project(x[:, :num_low], False, None if angles is None else angles[:, :num_low])
            _, attention = hierarchical_attention(q, k, v, need_map=True)
            exact, estimate = received_attention(attention), estimate_received_attention(q, k, grid)
            chosen = [
                self._chosen(relevance.unflatten(1, grid), selector, cell_size) for relevance in (exact, estimate)
            ]
            shared = (chosen[0] & chosen[1]).sum(1) / chosen[0].sum(1).clamp(min=1)
            entropy = torch.special.entr(attention).sum(-1).mean((1, 2)) / math.log(num_low)
            self.figures[name] += zip(rank_correlation(exact, estimate).tolist(), shared.tolist(), entropy.tolist())

        return compare

    @staticmethod
    def _chosen(relevance: Tensor, selector: TokenSelector, cell_size: int) -> Tensor:
        scores = pool_to_cells(min_max(relevance), cell_size).flatten(1)
        if selector.mode == 'threshold':
            return scores * 255 > selector.threshold
        best = scores.topk(selector.count(scores.shape[1])).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)


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
            seen += len(runner.model.test_step(data))
            if seen >= args.images:
                break

    print(f'{seen} pictures; {args.config}')
    print('| layer | rank correlation, mean | least | cells shared | entropy of the attention |')
    print('|---|---|---|---|---|')
    for name, figures in recorder.figures.items():
        correlation, shared, entropy = torch.tensor(figures).unbind(1)
        print(
            f'| {name} | {correlation.mean():.3f} | {correlation.min():.3f} | {shared.mean():.1%} | '
            f'{entropy.mean():.0%} of the maximum |'
        )


if __name__ == '__main__':
    main()
