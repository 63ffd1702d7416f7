from mmvisattn.models.layers.padding import content_size, is_inside, resample_positions

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed


def test_content_ends_with_the_last_pixel_that_is_not_zero():
    images = torch.randn(4, 3, 9, 12)
    images[0, :, 7:] = 0
    images[0, :, :, 5:] = 0
    images[1, :2, :, 11] = 0  # one channel is enough
    images[2, :, 2:4] = 0  # a black stripe inside
    images[3] = 0
    assert content_size(images).tolist() == [[7, 5], [9, 12], [9, 12], [1, 1]]


def test_normalised_pictures_have_no_zeros():
    """Whatever bytes they are made of, since the means of ImageNet are no bytes."""
    colours = torch.arange(256.0)
    for mean, std in ((123.675, 58.395), (116.28, 57.12), (103.53, 57.375), (127.5, 127.5)):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert ((colours - mean) / std).to(dtype).ne(0).all()


def test_is_inside():
    inside = is_inside(torch.tensor([[2, 3], [4, 1]]), (4, 5))
    assert inside.shape == (2, 4, 5) and inside.sum((1, 2)).tolist() == [6, 4]
    assert inside[0, :2, :3].all() and inside[1, :, 0].all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_positions_of_each_image_are_those_of_timm(dtype):
    positions = torch.randn(1, 56, 5, dtype=dtype)  # 7×8
    sizes = torch.tensor([[7, 8], [12, 3], [20, 31], [1, 1], [5, 17]])
    out = resample_positions(positions[0].unflatten(0, (7, 8)), sizes, (20, 31))
    assert out.shape == (5, 20, 31, 5) and out.dtype == dtype
    for image, (height, width) in zip(out, sizes.tolist()):
        expected = resample_abs_pos_embed(positions, [height, width], [7, 8], num_prefix_tokens=0)
        expected = expected.unflatten(1, (height, width))[0]
        torch.testing.assert_close(image[:height, :width], expected, rtol=1e-5, atol=1e-5)
        # padding has the positions of the border
        border = F.pad(expected.movedim(2, 0)[None], (0, 31 - width, 0, 20 - height), mode='replicate')[0].movedim(0, 2)
        torch.testing.assert_close(image, border, rtol=1e-5, atol=1e-5)


def test_positions_have_a_gradient():
    positions = torch.randn(4, 4, 2, dtype=torch.double, requires_grad=True)
    sizes = torch.tensor([[3, 6], [5, 2]])
    torch.autograd.gradcheck(lambda p: resample_positions(p, sizes, (6, 6)), (positions,))
