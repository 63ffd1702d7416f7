"""Triton kernels of the selective scan; see the package docstring for the formulas.

One program is one warp. It keeps the states of a few channels in registers and walks over a segment of the sequence,
loading the inputs of each step one step ahead. Sequences of u, delta and their like are (B, L, D), B and C (B, L, N).

A batch of one or two images has too few channels to fill a GPU, so the sequence can be cut into segments that run side
by side. A first, short kernel then computes what each segment adds to the state if it starts from zero, together with
its sum of delta, which is all that is needed to know how much of an earlier state outlives the segment.
"""

import triton
import triton.language as tl


@triton.jit
def _load_row(sequence, row, column, size, mask):
    """One step of some columns of a (rows, size) matrix, zero where masked."""
    return tl.load(sequence + row * size + column, mask=mask, other=0.0)


@triton.jit
def _repeat_rows(x, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr):
    """A row for each channel. Loaded by such indices, B and C need not be moved between threads."""
    return tl.broadcast_to(x[None, :], (BLOCK_D, BLOCK_N))


@triton.jit
def _segment_bounds(segment_length, length):
    start = tl.program_id(1) * segment_length
    return start, tl.minimum(start + segment_length, length)


@triton.jit
def _join(state, a, part_state, part_delta, part, d, dn, d_mask, dn_mask, dim, N):
    """Carry a state across one segment."""
    total = _load_row(part_delta, part, d, dim, d_mask)
    added = tl.load(part_state + part * dim * N + dn, mask=dn_mask, other=0.0)
    return tl.exp2(a * total[:, None]) * state + added


@triton.jit
def segment_kernel(
    u, delta, A, B, part_state, part_delta, dim, length, segment_length,
    N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, ACC: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What a segment adds to the state at its end, and its sum of delta.

    With REVERSE the same for the gradient of the state, which runs backwards; u and B are then grad_y and C.
    """
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    d_mask, n_mask = d < dim, n < N
    nn, nn_mask = _repeat_rows(n, BLOCK_D, BLOCK_N), _repeat_rows(n_mask, BLOCK_D, BLOCK_N)
    dn = d[:, None] * N + n[None, :]
    dn_mask = d_mask[:, None] & n_mask[None, :]
    batch = tl.program_id(2).to(tl.int64)
    start, stop = _segment_bounds(segment_length, length)

    a = tl.load(A + dn, mask=dn_mask, other=0.0)
    state = tl.zeros((BLOCK_D, BLOCK_N), dtype=ACC)
    total = tl.zeros((BLOCK_D,), dtype=ACC)
    u += batch * length * dim
    delta += batch * length * dim
    B += batch * length * N
    row = stop - 1 if REVERSE else start
    u_t = _load_row(u, row, d, dim, d_mask)
    dt_t = _load_row(delta, row, d, dim, d_mask)
    B_t = _load_row(B, row, nn, N, nn_mask)
    for i in range(start, stop):
        u_now, dt, B_now = u_t.to(ACC), dt_t.to(ACC), B_t
        ahead = tl.minimum(i + 1, stop - 1)
        row = start + stop - 1 - ahead if REVERSE else ahead
        u_t = _load_row(u, row, d, dim, d_mask)
        dt_t = _load_row(delta, row, d, dim, d_mask)
        B_t = _load_row(B, row, nn, N, nn_mask)
        decay = tl.exp2(dt[:, None] * a)
        if REVERSE:
            state = decay * (state + u_now[:, None] * B_now)
        else:
            state = decay * state + (dt * u_now)[:, None] * B_now
        total += dt
    part = batch * tl.num_programs(1) + tl.program_id(1)
    tl.store(part_state + part * dim * N + dn, state, mask=dn_mask)
    tl.store(part_delta + part * dim + d, total, mask=d_mask)


@triton.jit
def forward_kernel(
    u, delta, A, B, C, y, states, part_state, part_delta, dim, length, segment_length,
    N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, ACC: tl.constexpr, CHUNK: tl.constexpr,
    SAVE_STATES: tl.constexpr,
):  # fmt: skip
    """The result of a segment, and the state (N, D) before each chunk."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    d_mask, n_mask = d < dim, n < N
    nn, nn_mask = _repeat_rows(n, BLOCK_D, BLOCK_N), _repeat_rows(n_mask, BLOCK_D, BLOCK_N)
    dn = d[:, None] * N + n[None, :]
    nd = n[None, :] * dim + d[:, None]
    dn_mask = d_mask[:, None] & n_mask[None, :]
    batch = tl.program_id(2).to(tl.int64)
    start, stop = _segment_bounds(segment_length, length)

    a = tl.load(A + dn, mask=dn_mask, other=0.0)
    h = tl.zeros((BLOCK_D, BLOCK_N), dtype=ACC)
    for i in range(0, tl.program_id(1)):
        part = batch * tl.num_programs(1) + i
        h = _join(h, a, part_state, part_delta, part, d, dn, d_mask, dn_mask, dim, N)

    u += batch * length * dim
    delta += batch * length * dim
    y += batch * length * dim
    B += batch * length * N
    C += batch * length * N
    u_t = _load_row(u, start, d, dim, d_mask)
    dt_t = _load_row(delta, start, d, dim, d_mask)
    B_t = _load_row(B, start, nn, N, nn_mask)
    C_t = _load_row(C, start, nn, N, nn_mask)
    for chunk_start in range(start, stop, CHUNK):
        if SAVE_STATES:
            chunk = (chunk_start // CHUNK) * tl.num_programs(2) + batch
            tl.store(states + chunk * dim * N + nd, h, mask=dn_mask)
        for t in range(chunk_start, tl.minimum(chunk_start + CHUNK, stop)):
            dt, B_now, C_now = dt_t.to(ACC), B_t, C_t
            x = dt * u_t.to(ACC)
            ahead = tl.minimum(t + 1, stop - 1)
            u_t = _load_row(u, ahead, d, dim, d_mask)
            dt_t = _load_row(delta, ahead, d, dim, d_mask)
            B_t = _load_row(B, ahead, nn, N, nn_mask)
            C_t = _load_row(C, ahead, nn, N, nn_mask)
            h = tl.exp2(dt[:, None] * a) * h + x[:, None] * B_now
            tl.store(y + t * dim + d, tl.sum(h * C_now, axis=1), mask=d_mask)


@triton.jit
def backward_kernel(
    grad_y, u, delta, A, B, C, states, part_state, part_delta, scratch,
    grad_u, grad_delta, grad_A, grad_B, grad_C, dim, length, segment_length, slots,
    N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, ACC: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """All gradients of a segment: grad_A by program, grad_B and grad_C summed over programs in ``slots`` sums."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    d_mask, n_mask = d < dim, n < N
    nn, nn_mask = _repeat_rows(n, BLOCK_D, BLOCK_N), _repeat_rows(n_mask, BLOCK_D, BLOCK_N)
    dn = d[:, None] * N + n[None, :]
    nd = n[None, :] * dim + d[:, None]
    dn_mask = d_mask[:, None] & n_mask[None, :]
    batch = tl.program_id(2).to(tl.int64)
    segments = tl.num_programs(1)
    segment = batch * segments + tl.program_id(1)
    start, stop = _segment_bounds(segment_length, length)
    grad_y += batch * length * dim
    u += batch * length * dim
    delta += batch * length * dim
    B += batch * length * N
    C += batch * length * N
    grad_u += batch * length * dim
    grad_delta += batch * length * dim
    slot = batch * slots + tl.program_id(0) % slots
    grad_B += slot * length * N
    grad_C += slot * length * N
    before = scratch + segment * CHUNK * dim * N + dn  # the states before each step of a chunk

    a = tl.load(A + dn, mask=dn_mask, other=0.0)
    sum_A = tl.zeros((BLOCK_D, BLOCK_N), dtype=ACC)
    carry = tl.zeros((BLOCK_D, BLOCK_N), dtype=ACC)
    for i in range(1, segments - tl.program_id(1)):
        part = (batch + 1) * segments - i
        carry = _join(carry, a, part_state, part_delta, part, d, dn, d_mask, dn_mask, dim, N)

    chunks = (stop - start + CHUNK - 1) // CHUNK
    for i in range(0, chunks):
        chunk_start = start + (chunks - 1 - i) * CHUNK
        steps = tl.minimum(CHUNK, stop - chunk_start)
        chunk = (chunk_start // CHUNK) * tl.num_programs(2) + batch
        h = tl.load(states + chunk * dim * N + nd, mask=dn_mask, other=0.0)

        u_t = _load_row(u, chunk_start, d, dim, d_mask)
        dt_t = _load_row(delta, chunk_start, d, dim, d_mask)
        B_t = _load_row(B, chunk_start, nn, N, nn_mask)
        for k in range(0, steps):
            dt, B_now = dt_t.to(ACC), B_t
            x = dt * u_t.to(ACC)
            ahead = chunk_start + tl.minimum(k + 1, steps - 1)
            u_t = _load_row(u, ahead, d, dim, d_mask)
            dt_t = _load_row(delta, ahead, d, dim, d_mask)
            B_t = _load_row(B, ahead, nn, N, nn_mask)
            tl.store(before + k * dim * N, h, mask=dn_mask)
            h = tl.exp2(dt[:, None] * a) * h + x[:, None] * B_now
        tl.debug_barrier()  # another thread may read a state than has written it

        row = chunk_start + steps - 1
        gy_t = _load_row(grad_y, row, d, dim, d_mask)
        u_t = _load_row(u, row, d, dim, d_mask)
        dt_t = _load_row(delta, row, d, dim, d_mask)
        B_t = _load_row(B, row, nn, N, nn_mask)
        C_t = _load_row(C, row, nn, N, nn_mask)
        h_t = tl.load(before + (steps - 1) * dim * N, mask=dn_mask, other=0.0)
        for i_back in range(0, steps):
            k = steps - 1 - i_back
            row = chunk_start + k
            gy, u_now, dt, B_now, C_now, h = gy_t.to(ACC), u_t.to(ACC), dt_t.to(ACC), B_t, C_t, h_t
            k_ahead = tl.maximum(k - 1, 0)
            ahead = chunk_start + k_ahead
            gy_t = _load_row(grad_y, ahead, d, dim, d_mask)
            u_t = _load_row(u, ahead, d, dim, d_mask)
            dt_t = _load_row(delta, ahead, d, dim, d_mask)
            B_t = _load_row(B, ahead, nn, N, nn_mask)
            C_t = _load_row(C, ahead, nn, N, nn_mask)
            h_t = tl.load(before + k_ahead * dim * N, mask=dn_mask, other=0.0)

            x = dt * u_now
            decay = tl.exp2(dt[:, None] * a)
            h_now = decay * h + x[:, None] * B_now
            g = carry + gy[:, None] * C_now
            carry = decay * g
            grad_exponent = carry * h
            sum_A += grad_exponent * dt[:, None]
            grad_x = tl.sum(g * B_now, axis=1)
            # A comes multiplied by log2(e)
            grad_dt = grad_x * u_now + tl.sum(grad_exponent * a, axis=1) * 0.6931471805599453
            tl.store(grad_u + row * dim + d, grad_x * dt, mask=d_mask)
            tl.store(grad_delta + row * dim + d, grad_dt, mask=d_mask)
            cell = row * N + n
            tl.atomic_add(grad_B + cell, tl.sum(g * x[:, None], axis=0), mask=n_mask, sem='relaxed')
            tl.atomic_add(grad_C + cell, tl.sum(h_now * gy[:, None], axis=0), mask=n_mask, sem='relaxed')
        tl.debug_barrier()
    tl.store(grad_A + segment * dim * N + dn, sum_A, mask=dn_mask)
