"""Triton kernels of the depthwise convolution; see the package docstring for the formula.

One program is one warp. Its lanes lie side by side in memory: channels where these are innermost, columns otherwise.
It keeps the sums of a few output rows (of a few taps for the weight gradient) in registers, so that each loaded value
goes into several of them.

Strides are not specialised: if Triton knew which neighbours are adjacent it would load vectors, and then move their
parts between lanes through shared memory for each tap.
"""

import triton
import triton.language as tl

_IMAGE_STRIDES = ['x_b', 'x_c', 'x_y', 'x_x']


@triton.jit
def _add_rows(
    acc, x, column, weight, c_mask, start, stop, first_y, width, x_y, x_x, tap_stride,
    KERNEL_Y: tl.constexpr, KERNEL_X: tl.constexpr, SOME: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add input rows to the sums of output rows; with SOME each only to those that it is in reach of."""
    r = tl.arange(0, ROWS)
    for step in range(start, stop):
        line = x + (first_y + step).to(tl.int64) * x_y
        tap_y = step - r
        reached = (tap_y >= 0) & (tap_y < KERNEL_Y)
        for tap_x in tl.static_range(KERNEL_X):
            at = column + tap_x
            inside = (at >= 0) & (at < width)
            value = tl.load(line + tap_x * x_x, mask=inside[:, None] & c_mask[None, :], other=0.0)  # (X, C)
            tap = weight + (tap_y * KERNEL_X + tap_x)[:, None] * tap_stride
            tap = tl.load(tap, mask=reached[:, None] & c_mask[None, :], other=0.0)  # (ROWS, C)
            added = acc + tap.to(ACC)[:, None, :] * value.to(ACC)[None, :, :]
            if SOME:  # zero times NaN is no zero
                acc = tl.where(reached[:, None, None], added, acc)
            else:
                acc = added
    return acc


@triton.jit(do_not_specialize=[*_IMAGE_STRIDES, 'weight_c', 'tap_stride', 'out_b', 'out_c', 'out_y', 'out_x'])
def convolution_kernel(
    x, weight, bias, out, channels, height, width, out_height, out_width, pad_y, pad_x,
    x_b, x_c, x_y, x_x, weight_c, tap_stride, out_b, out_c, out_y, out_x,
    KERNEL_Y: tl.constexpr, KERNEL_X: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A few rows and columns of the result of a few channels, in one image."""
    tiles_x = (out_width + BLOCK_X - 1) // BLOCK_X
    row = tl.program_id(0) // tiles_x * ROWS
    column = tl.program_id(0) % tiles_x * BLOCK_X + tl.arange(0, BLOCK_X)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < channels
    c_far = c.to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)

    acc = tl.zeros((ROWS, BLOCK_X, BLOCK_C), dtype=ACC)
    if HAS_BIAS:
        acc += tl.load(bias + c, mask=c_mask, other=0.0).to(ACC)[None, None, :]

    first_y = row - pad_y
    column_in = column - pad_x
    x += batch * x_b + column_in[:, None].to(tl.int64) * x_x + c_far[None, :] * x_c
    weight += c_far[None, :] * weight_c
    # Steps over input rows inside the image: the first and the last reach only some of the output rows.
    start = tl.maximum(0, -first_y)
    stop = tl.minimum(ROWS + KERNEL_Y - 1, height - first_y)
    LAST: tl.constexpr = KERNEL_Y if KERNEL_Y > ROWS - 1 else ROWS - 1
    acc = _add_rows(
        acc, x, column_in, weight, c_mask, start, tl.minimum(stop, ROWS - 1), first_y, width, x_y, x_x, tap_stride,
        KERNEL_Y, KERNEL_X, True, ROWS, ACC,
    )  # fmt: skip
    acc = _add_rows(
        acc, x, column_in, weight, c_mask, tl.maximum(start, ROWS - 1), tl.minimum(stop, KERNEL_Y), first_y, width,
        x_y, x_x, tap_stride, KERNEL_Y, KERNEL_X, False, ROWS, ACC,
    )  # fmt: skip
    acc = _add_rows(
        acc, x, column_in, weight, c_mask, tl.maximum(start, LAST), stop, first_y, width, x_y, x_x, tap_stride,
        KERNEL_Y, KERNEL_X, True, ROWS, ACC,
    )  # fmt: skip

    r = row + tl.arange(0, ROWS)
    out += batch * out_b + column[None, :, None].to(tl.int64) * out_x + c_far[None, None, :] * out_c
    mask = (r < out_height)[:, None, None] & (column < out_width)[None, :, None] & c_mask[None, None, :]
    tl.store(out + r[:, None, None].to(tl.int64) * out_y, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[*_IMAGE_STRIDES, 'grad_b', 'grad_c', 'grad_y', 'grad_x'])
def weight_gradient_kernel(
    grad, x, parts, batch_size, channels, height, width, out_height, out_width, padding, rows,
    grad_b, grad_c, grad_y, grad_x, x_b, x_c, x_y, x_x,
    KERNEL_Y: tl.constexpr, KERNEL_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, LANES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What a few input rows of one image add to a few taps."""
    part = tl.program_id(0)
    batch = (part % batch_size).to(tl.int64)
    start = part // batch_size * rows
    stop = tl.minimum(start + rows, height)
    groups_x: tl.constexpr = (KERNEL_X + BLOCK_X - 1) // BLOCK_X
    tap_y = tl.program_id(1) // groups_x * BLOCK_Y + tl.arange(0, BLOCK_Y)
    tap_x = tl.program_id(1) % groups_x * BLOCK_X + tl.arange(0, BLOCK_X)
    lane = tl.arange(0, LANES)
    if CHANNELS_LAST:
        c, column, COLUMNS = tl.program_id(2) * LANES + lane, lane * 0, 1
    else:
        c, column, COLUMNS = tl.program_id(2) + lane * 0, lane, LANES
    c_mask = c < channels

    offset = tap_x - padding
    x += batch * x_b + c.to(tl.int64)[None, :] * x_c + offset.to(tl.int64)[:, None] * x_x
    grad += batch * grad_b + c.to(tl.int64)[None, :] * grad_c
    acc = tl.zeros((BLOCK_Y, BLOCK_X, LANES), dtype=ACC)
    for i in range(0, stop - start):
        y = start + i
        line = x + y.to(tl.int64) * x_y
        row = y + padding - tap_y
        row_mask = (row >= 0) & (row < out_height)
        grad_rows = grad + row.to(tl.int64)[:, None] * grad_y
        for first in range(0, out_width, COLUMNS):
            at = first + column
            at_far = at.to(tl.int64)
            mask = (at < out_width) & c_mask
            g = tl.load(grad_rows + at_far[None, :] * grad_x, mask=row_mask[:, None] & mask[None, :], other=0.0)
            at_x = at[None, :] + offset[:, None]
            inside = (at_x >= 0) & (at_x < width) & mask[None, :]
            value = tl.load(line + at_far[None, :] * x_x, mask=inside, other=0.0)
            acc += g.to(ACC)[:, None, :] * value.to(ACC)[None, :, :]

    parts += part.to(tl.int64) * channels * (KERNEL_Y * KERNEL_X)
    taps = tap_y[:, None] * KERNEL_X + tap_x[None, :]
    taps_mask = (tap_y < KERNEL_Y)[:, None] & (tap_x < KERNEL_X)[None, :]
    if CHANNELS_LAST:
        cells = c[None, None, :] * (KERNEL_Y * KERNEL_X) + taps[:, :, None]
        tl.store(parts + cells, acc, mask=taps_mask[:, :, None] & c_mask[None, None, :])
    else:
        tl.store(parts + tl.program_id(2) * (KERNEL_Y * KERNEL_X) + taps, tl.sum(acc, axis=2), mask=taps_mask)
