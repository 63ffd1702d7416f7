from mmvisattn.models.layers import BandpassFilter, rotate

import pytest
import torch

from tests.golden import load


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_rotation_equals_the_authors(dtype):
    golden = {key: torch.from_numpy(value) for key, value in load('add_rope_2x37x16').items()}
    suffix, atol = ('', 1e-6) if dtype == torch.float32 else ('_f64', 1e-14)
    for name in ('B', 'C'):
        out = rotate(golden[name].to(dtype), golden['freq'].to(dtype), golden['rope_scale_factor'].item())
        torch.testing.assert_close(out, golden[f'{name}_out{suffix}'], rtol=0, atol=atol)


def test_product_of_rotated_vectors_depends_on_their_distance_alone():
    bandpass = BandpassFilter(2, 8, rope_scale=3.0).double()
    q, k = torch.randn(2, 8, dtype=torch.double)
    q, k = (bandpass.rotate(x.expand(1, 1, 20, 8))[0, 0] for x in (q, k))
    products = q @ k.T
    for distance in range(-19, 20):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert products[0].std() > 0.01


def test_filter_starts_as_in_retnet_and_rotary_embedding():
    bandpass = BandpassFilter(6, 8, delta_scale=2.0)
    torch.testing.assert_close((2 * bandpass.rate()).exp(), 1 - 2.0 ** -torch.arange(5.0, 11))
    torch.testing.assert_close(bandpass.freq, torch.tensor([1, 0.1, 0.01, 0.001]))


def test_half_precision_is_rotated_in_float32():
    x, freq = torch.randn(1, 300, 8).bfloat16(), torch.rand(8)
    assert rotate(x, freq).dtype == torch.float32
    torch.testing.assert_close(rotate(x, freq), rotate(x.float(), freq))
    assert BandpassFilter(1, 8).rotate(x[None]).dtype == torch.bfloat16


def test_filter_without_parts_has_no_parameters():
    x = torch.randn(1, 2, 5, 8)
    bandpass = BandpassFilter(2, 8, decay=False, rotation=False)
    assert not list(bandpass.parameters())
    assert bandpass.rate() is None
    assert bandpass.rotate(x) is x
