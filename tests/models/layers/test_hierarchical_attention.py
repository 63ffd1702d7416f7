import ast

from mmvisattn.models.layers.hierarchical_attention import (
    HierarchicalAttention,
    axial_angles,
    hierarchical_attention,
    rotate_by_angles,
)
from mmvisattn.models.layers.selection import TokenSelector
from mmvisattn.testing import load_golden_weights

import numpy as np
import pytest
import torch
from torch import nn

from tests.golden import load
from tests.models.layers.flex_utils import (
    attention_map,
    build,
    choose_among_9x9,
    inside_letterbox,
    plainly,
    tokens,
    upsample_cells,
)

# Against the authors' implementation: what only a language model has stands here.


class LanguageLayer(nn.Module):
    """Projections, rotary embedding, causal mask and answer rows around the attention core."""

    def __init__(self, golden: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.golden = golden
        for name in ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'k_proj_hd', 'v_proj_hd'):
            self.add_module(name, nn.Linear(64, 64, bias=False))
        load_golden_weights(self)

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.golden[name])

    def heads(self, x: torch.Tensor, tables: tuple[str, str] | None = None) -> torch.Tensor:
        x = x.unflatten(2, (4, 16)).transpose(1, 2)
        if tables is None:
            return x
        cos, sin = (self.tensor(name)[..., : x.shape[2], :] for name in tables)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def attend(self, hidden, hd=None, mask_high=None, rows=None):
        """Attention of the given rows; ``mask_high`` (B, rows, M) opens high-resolution tokens to them."""
        length = hidden.shape[1]
        q, k = (self.heads(proj(hidden), ('rope_cos', 'rope_sin')) for proj in (self.q_proj, self.k_proj))
        v = self.heads(self.v_proj(hidden))
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        if hd is None:
            return hierarchical_attention(q, k, v, mask=mask), attention_map(q, k, mask)
        k_high = self.heads(self.k_proj_hd(hd), ('image_cos', 'image_sin'))
        v_high = self.heads(self.v_proj_hd(hd))
        mask = torch.cat([mask[rows][None].expand(len(hd), -1, -1), mask_high], -1)[:, None]
        args = (q[:, :, rows], k, v, k_high, v_high, mask)
        return hierarchical_attention(*args), attention_map(q[:, :, rows], torch.cat([k, k_high], 2), mask)

    def project_out(self, x: torch.Tensor) -> torch.Tensor:
        return self.o_proj(x.transpose(1, 2).flatten(2))

    def select(self, attention: torch.Tensor, image: int, rows: list[int], size: list[int]) -> torch.Tensor:
        """The high-resolution tokens that each of some rows points at, (rows, 324)."""
        begin, end = int(self.golden['image_begin']), int(self.golden['image_end'])
        chosen = attention[image, :, rows, begin:end].transpose(0, 1).unsqueeze(2)  # (rows, heads, 1, 36)
        selector = TokenSelector('threshold', threshold=float(self.golden['threshold']))
        relevance = chosen.sum((1, 2)).unflatten(1, (6, 6))
        cells = choose_among_9x9(selector, relevance, inside_letterbox(size, 6))
        return upsample_cells(cells, (18, 18)).flatten(1)


@pytest.fixture(scope='module')
def layer() -> LanguageLayer:
    return LanguageLayer(load('flex_attention_layer'))


def gradient_norms(layer, out, hidden, hd) -> dict[str, float]:
    loss = out.square().mean()
    layer.zero_grad()
    loss.backward()
    norms = {f'gradnorm_{name}': p.grad.norm().item() for name, p in layer.named_parameters()}
    return norms | dict(
        loss=loss.item(), grad_hidden_norm=hidden.grad.norm().item(), grad_hd_norm=hd.grad.norm().item()
    )


CLOSE = dict(rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize(('case', 'length'), [('infer', 46), ('prefill', 45)])
def test_golden_layer_in_inference(layer, case, length):
    golden = layer.golden
    hidden = layer.tensor('hidden_infer')[:, :length].clone().requires_grad_()
    hd = layer.tensor('hd_infer').clone().requires_grad_()
    size = golden['ori_sizes_infer'][0].tolist()
    base, attention = layer.attend(hidden)
    selected = layer.select(attention, 0, [length - 1], size)
    name = 'infer_select_b0_0' if case == 'infer' else 'prefill_layer8_select'
    np.testing.assert_array_equal(selected, golden[name])
    assert 0 < selected.sum() < selected.numel()

    flexible, _ = layer.attend(hidden, hd, selected[None], [length - 1])
    out = layer.project_out(torch.cat([base[:, :, :-1], flexible], 2))
    np.testing.assert_allclose(out.detach(), golden[f'{case}_layer9_out'], **CLOSE)
    if case == 'prefill':
        return
    np.testing.assert_allclose(layer.project_out(base).detach(), golden['infer_layer8_out'], **CLOSE)
    np.testing.assert_allclose(attention.detach(), golden['infer_layer8_attn'], **CLOSE)
    np.testing.assert_allclose(attention.detach(), golden['infer_layer9_attn_base'][..., :46], **CLOSE)
    np.testing.assert_array_equal(selected, golden['infer_layer9_nextselect_b0_0'])
    np.testing.assert_array_equal(out.detach()[:, -1:].shape, golden['decode_layer9_out'].shape)
    np.testing.assert_allclose(out.detach()[:, -1:], golden['decode_layer9_out'], **CLOSE)
    for key, value in gradient_norms(layer, out, hidden, hd).items():
        np.testing.assert_allclose(value, golden[f'infer_layer9_{key}'], rtol=2e-4, err_msg=key)


@pytest.mark.parametrize('step', [0.05, 1.0])
def test_golden_layer_in_training(layer, step):
    golden = layer.golden
    alpha = min(1.0, step * float(golden['warmup']))
    hidden, hd = (layer.tensor(name).clone().requires_grad_() for name in ('hidden_train', 'hd_train'))
    base, attention = layer.attend(hidden)
    np.testing.assert_allclose(layer.project_out(base).detach(), golden['train_layer8_out'], **CLOSE)
    np.testing.assert_allclose(attention.detach(), golden[f'train_layer9_step{step}_attn_base'][..., :46], **CLOSE)

    outs = []
    for image, spans in enumerate(ast.literal_eval(str(golden['label_ranges_train']))):
        out = base[image : image + 1]
        for span, (first, last) in enumerate(spans):
            rows = list(range(first - 1, last))
            selected = layer.select(attention, image, rows, golden['ori_sizes_train'][image].tolist())
            np.testing.assert_array_equal(selected, golden[f'train_select_b{image}_{span}'])
            np.testing.assert_array_equal(selected, golden[f'train_layer9_step{step}_nextselect_b{image}_{span}'])
            flexible, _ = layer.attend(hidden[image : image + 1], hd[image : image + 1], selected[None], rows)
            mixed = (1 - alpha) * out[:, :, rows] + alpha * flexible
            out = out.index_copy(2, torch.tensor(rows), mixed)
        outs.append(out)
    out = layer.project_out(torch.cat(outs))
    np.testing.assert_allclose(out.detach(), golden[f'train_layer9_step{step}_out'], **CLOSE)
    for key, value in gradient_norms(layer, out, hidden, hd).items():
        np.testing.assert_allclose(value, golden[f'train_layer9_step{step}_{key}'], rtol=2e-4, err_msg=key)


# Against the formula, written out plainly.


def test_attention_equals_the_formula():
    attn, x = build().attn, tokens(2, 13)
    torch.testing.assert_close(attn.forward_both(x, 8), torch.stack([plainly(attn, image, 8) for image in x]))
    attn = build(high_res=False).attn
    out, (k, v) = attn(x)
    assert k.shape == v.shape == (2, 3, 13, 8)
    torch.testing.assert_close(out, torch.stack([plainly(attn, image, 13) for image in x]))


def test_keys_that_were_kept_are_looked_at_as_if_they_were_there():
    attn, x = build(high_res=False).attn, tokens(2, 13)
    _, context = attn(x[:, :8])
    out, own = attn(x[:, 8:], context)
    torch.testing.assert_close(out, torch.stack([plainly(attn, image, 13)[8:] for image in x]))
    assert own[0].shape == (2, 3, 5, 8)
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[0, 5:8] = mask[1, 12] = False
    out, _ = attn(x[:, 8:], context, mask)
    for image in range(2):
        kept = plainly(attn, x[image, mask[image]], mask[image].sum())
        torch.testing.assert_close(out[image, mask[image, 8:]], kept[mask[image, :8].sum() :])


def test_ragged_selections_equal_each_image_alone():
    attn, x = build().attn, tokens(3, 13)
    keep = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    mask = torch.cat([torch.ones(3, 8, dtype=torch.bool), keep], 1)
    out = attn.forward_both(x, 8, mask)
    for image in range(3):
        torch.testing.assert_close(out[image, mask[image]], plainly(attn, x[image, mask[image]], 8))


def test_without_high_resolution_tokens_their_projections_still_have_a_gradient():
    block, low = build(), tokens(2, 9)
    out = block.forward_both(low, 9)
    torch.testing.assert_close(out, block(low)[0])
    out.sum().backward()
    assert block.attn.kv_high.weight.grad is not None  # an unused parameter would stop distributed training


@pytest.mark.parametrize('masked', [False, True])
def test_attention_is_its_map_times_the_values(masked):
    q, k, v, k_high, v_high = (torch.randn(2, 3, n, 8, dtype=torch.double) for n in (7, 7, 7, 5, 5))
    mask = torch.rand(2, 1, 7, 12) > 0.4 if masked else None
    if masked:
        mask[..., 0] = True
    attention = attention_map(q, torch.cat([k, k_high], 2), mask)
    out = hierarchical_attention(q, k, v, k_high, v_high, mask)
    torch.testing.assert_close(out, attention @ torch.cat([v, v_high], 2))
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 7, dtype=torch.double))
    assert not masked or not attention.masked_select(~mask).any()


def test_high_resolution_projections_start_as_copies():
    attn = HierarchicalAttention(24, 3)
    x = torch.randn(2, 13, 24)
    q, k, v = attn.qkv(x).unflatten(2, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(
        attn.forward_both(x, 8), attn.proj(hierarchical_attention(q, k, v).transpose(1, 2).flatten(2))
    )
    assert attn.kv_high.weight.data_ptr() != attn.qkv.weight.data_ptr()


# Warm start.


def test_alpha_blends_the_plain_path_into_the_hierarchical_one():
    block, x = build().train(), tokens(2, 17)
    full = block.forward_both(x, 9)

    block.set_alpha(0.0)
    plain = build(high_res=False)
    plain.load_state_dict({key: value for key, value in block.state_dict().items() if 'kv_high' not in key})
    torch.testing.assert_close(block.forward_both(x, 9), torch.cat([plain(x[:, :9])[0], x[:, 9:]], 1))

    block.set_alpha(0.25)
    normed = block.norm1(x)
    mixed = plainly(block.attn, normed[0], 9) * 0.25
    mixed[:9] += 0.75 * plainly(plain.attn, normed[0, :9], 9)
    expected = x[0] + mixed
    out = block.mlp(block.norm2(expected))
    out[9:] *= 0.25
    torch.testing.assert_close(block.forward_both(x, 9)[0], expected + out)

    torch.testing.assert_close(block.eval().forward_both(x, 9), full)
    block.train().set_alpha(1.0)
    torch.testing.assert_close(block.forward_both(x, 9), full, rtol=0, atol=0)
    assert not any('alpha' in key for key in block.state_dict())


def test_drop_path_skips_both_resolutions_of_an_image_together():
    block, x = build(drop_path_rate=0.5).train(), tokens(64, 8)
    same = (block.forward_both(x, 4) == x).all(2)
    assert 0 < same[:, 0].sum() < 64
    assert torch.equal(same, same[:, :1].expand(-1, 8))


# Rotary angles.


def test_rotary_attention_sees_distances_alone():
    low, high = axial_angles((3, 4), 2, 8, torch.device('cpu')), axial_angles((6, 8), 1, 8, torch.device('cpu'))
    # the centre of a coarse token is the middle of the four below it
    torch.testing.assert_close(low, (high[::2, ::2] + high[1::2, 1::2]) / 2)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.double)

    def score(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (rotate_by_angles(q, a.view(1, 1, 4)) * rotate_by_angles(k, b.view(1, 1, 4))).sum()

    torch.testing.assert_close(score(high[0, 1], high[2, 5]), score(high[3, 2], high[5, 6]), rtol=1e-5, atol=1e-6)
    assert (score(high[0, 1], high[2, 5]) - score(high[0, 1], high[5, 2])).abs() > 1e-3
    torch.testing.assert_close(rotate_by_angles(q, high[4, 3].view(1, 1, 4)).norm(), q.norm())


def test_half_precision_stays_near_full():
    block, x = build().float(), tokens(1, 17).float()
    expected = block.forward_both(x, 9)
    with torch.autocast('cpu', torch.bfloat16):
        out = block.forward_both(x, 9)
    assert (out - expected).abs().mean() < 0.05 * expected.abs().mean()
