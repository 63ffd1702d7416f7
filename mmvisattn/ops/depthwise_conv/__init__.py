"""Depthwise convolution of stride 1 with a large kernel, forward and backward, by several backends.

The convolution and its two gradients are one form, linear in image, kernel and gradient,

    sum over b, c, y, x, i, j of  image[b, c, y + i - padding, x + j - padding] · kernel[c, i, j] · grad[b, c, y, x]

differentiated by one of the three. So the derivatives of each of them are again the other two, to any order.

- ``native`` is ``F.conv2d``.
- ``torch`` has gradients that are fast on a CPU, because they are forward convolutions themselves: that of the input
  one with the kernel turned round, that of the kernel one of the image with the output gradient as the kernel, the
  batch folded into the channels. For the latter torch's own takes 5 to 40 times as long as for the forward.
- ``triton`` has CUDA kernels for all three.
"""

from .interface import BACKENDS, MIN_KERNEL_SIZE, DepthwiseConv2d, available_backends, depthwise_conv2d

__all__ = ['BACKENDS', 'MIN_KERNEL_SIZE', 'DepthwiseConv2d', 'available_backends', 'depthwise_conv2d']
