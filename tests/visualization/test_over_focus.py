import math

from mmvisattn.visualization.over_focus import (
    attention_map,
    before,
    diversity,
    effective_share,
    frequency_response,
    half_power_width,
    mean_received,
    received,
    token_gradients,
    top_mass,
)

import pytest
import torch


def test_effective_share():
    weights = torch.tensor([[1.0, 1, 1, 1], [0, 5, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(effective_share(weights), torch.tensor([1, 0.25, 0.5, 0]))
    # Entropy of (1/2, 1/4, 1/4): 1.5 bits.
    torch.testing.assert_close(effective_share(torch.tensor([2.0, 1, 1])), torch.tensor(2**1.5 / 3))


def test_effective_share_against_a_base():
    base = torch.tensor([3.0, 1, 0])
    share = effective_share(torch.tensor([[6.0, 2, 0], [1, 1, 0], [0, 1, 0]]), base)
    # KL((1/2, 1/2) ‖ (3/4, 1/4)) = ln(2/3)/2 + ln(2)/2; all on the second: ln 4.
    torch.testing.assert_close(share, torch.tensor([1, math.sqrt(3 / 4), 1 / 4]))


def test_top_mass():
    weights = torch.tensor([[4.0, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    torch.testing.assert_close(top_mass(weights, 0.2), torch.tensor([0.5, 0.2, 0]))
    torch.testing.assert_close(top_mass(weights, 0.21), torch.tensor([5 / 8, 0.4, 0]))  # two tokens
    torch.testing.assert_close(top_mass(weights, 1.0), torch.tensor([1.0, 1, 0]))


def test_token_gradients_of_a_token_and_of_a_loss():
    x = torch.tensor([[[3.0, 4], [1, 0], [5, 5]]], requires_grad=True)
    y = 2 * x
    last = y[:, 0] + 3 * y[:, 1]  # (12, 8) + ..., the third token counts for nothing
    fields = token_gradients(last.norm(dim=-1), [x, y])
    torch.testing.assert_close(fields[0], torch.tensor([[2.0, 6, 0]]))
    torch.testing.assert_close(fields[1], torch.tensor([[1.0, 3, 0]]))
    (of_loss,) = token_gradients(y.square().sum(), [y])
    torch.testing.assert_close(of_loss, 2 * y.norm(dim=-1))


@pytest.mark.parametrize('chunk', [1, 2, 16])
def test_attention_map_of_a_linear_mixer(chunk):
    """Where each output is a sum of tokens along its own direction, the gradient of its norm is the weight."""
    weights = torch.tensor([[0.0, 0, 0], [1, 5, 0], [2, 3, 7]])
    x = torch.rand(2, 3, 4) + 1
    attention = attention_map(lambda x: weights @ x, x, [2, 1], chunk=chunk)
    expected = torch.tensor([[2.0, 3, 0], [1, 0, 0]])  # without the diagonal
    torch.testing.assert_close(attention, expected.expand(2, 1, 2, 3))


def test_attention_map_of_groups():
    """The first head copies the token before, the second the first token."""
    before, first = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), torch.tensor([[1.0, 0, 0]] * 3)
    x = torch.rand(1, 3, 4) + 1
    mix = lambda x: torch.cat((before @ x[..., :2], first @ x[..., 2:]), -1)  # noqa: E731
    attention = attention_map(mix, x, [1, 2], groups=2)
    assert attention.shape == (1, 2, 2, 3)
    torch.testing.assert_close(attention[0, 0], torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    torch.testing.assert_close(attention[0, 1], torch.tensor([[1.0, 0, 0], [1, 0, 0]]))
    # The query 1: both heads at the same token, 0; the query 2: at different ones, 1.
    torch.testing.assert_close(diversity(attention), torch.tensor([0.5]))
    torch.testing.assert_close(received(attention[0, 1]), torch.tensor([1.0, 0, 0]))


def test_heads_before_the_projection():
    """Behind a projection that sums the heads both look at both tokens; before it each at its own."""
    projection = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.ones_(projection.weight)
    before_last, first = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), torch.tensor([[1.0, 0, 0]] * 3)
    mix = lambda x: projection(torch.cat((before_last @ x[..., :2], first @ x[..., 2:]), -1))  # noqa: E731
    x = torch.rand(1, 3, 4) + 1
    heads = attention_map(before(projection, mix), x, [2], groups=2)
    torch.testing.assert_close(heads[0, :, 0], torch.tensor([[0.0, 1, 0], [1, 0, 0]]))
    behind = attention_map(mix, x, [2], groups=2)
    assert (behind[0, :, 0, :2] > 1).all() and not projection._forward_pre_hooks


def test_diversity():
    alike = torch.tensor([1.0, 2, 3]).expand(4, 2, 3)
    torch.testing.assert_close(diversity(alike), torch.tensor(0.0))
    apart = torch.eye(3)[:, None]  # three groups, one query
    torch.testing.assert_close(diversity(apart), torch.tensor(1.0))
    # (1, 0) and (1/2, 1/2): H(3/4, 1/4) − (0 + 1)/2 bits.
    half = torch.tensor([[[1.0, 0]], [[0.5, 0.5]]])
    torch.testing.assert_close(diversity(half), torch.tensor(2 - 0.75 * math.log2(3) - 0.5))
    silent = torch.cat((half, torch.tensor([[[0.0, 0]], [[1, 0]]])), 1)  # another query, which a group does not answer
    torch.testing.assert_close(diversity(silent), diversity(half))
    assert diversity(torch.ones(1, 2, 3)) == 0


def test_what_a_causal_mean_gives_is_no_concentration():
    # Query 1 gives all to token 0; query 2 halves to 0 and 1; query 3 thirds.
    base = mean_received([1, 2, 3], 4, causal=True)
    torch.testing.assert_close(base, torch.tensor([1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3, 0]).double() / 3)
    uniform = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]).double()
    torch.testing.assert_close(effective_share(received(uniform), base), torch.tensor(1.0).double())
    sink = torch.tensor([[1.0, 0, 0, 0]] * 3).double()
    torch.testing.assert_close(effective_share(received(sink), base), base[0])
    torch.testing.assert_close(mean_received([0, 1, 2], 3, causal=False), torch.full((3,), 1 / 3).double())


def test_frequency_response():
    omega = torch.linspace(-3, 3, 7)
    # Two steps: |1 + e^λ e^{i(θ−ω)}| / (1 + e^λ), by the law of cosines.
    rate, freq = torch.tensor(-0.5), torch.tensor(1.0)
    decay = math.exp(-0.5)
    expected = (1 + 2 * decay * (1 - omega).double().cos() + decay**2).sqrt() / (1 + decay)
    torch.testing.assert_close(frequency_response(rate, freq, omega, 2), expected)
    # An endless one is a geometric series.
    long = frequency_response(rate, freq, omega, 200)
    geometric = (1 - decay) / (1 - torch.polar(torch.tensor(decay).double(), (freq - omega).double())).abs()
    torch.testing.assert_close(long, geometric)
    assert long.argmax() == 4 and long[4] == pytest.approx(1)


def test_half_power_width():
    rates = torch.tensor([-0.01, -0.3, -1.0])
    widths = half_power_width(rates)
    gains = frequency_response(rates, torch.zeros(3), widths / 2, 5000)
    torch.testing.assert_close(gains, torch.full((3,), 0.5**0.5).double(), rtol=1e-4, atol=0)
    assert half_power_width(torch.tensor(-5.0)) == pytest.approx(2 * math.pi)
    assert widths.diff().min() > 0
