"""The MLP on groups of neighbours and its maximum, on the CPU: piece by piece in the cache, and little of it kept.

Written out, the layers of PointNet++ make tensors of (shapes x centres x neighbours) rows by 32 to 256 features, a
gigabyte each, and spend more time on fetching fresh memory than on arithmetic. Here a piece of some thousand rows goes
through all the steps between two statistics of batch normalisation while it is in the cache. What else is saved:

- Slots that repeat the nearest neighbour are equal rows. Groups are sorted by how many real slots they have, a piece
  holds only as many slots as its fullest group, and the rest count as a weight on the first slot.
- The maximum commutes with the last normalisation and ReLU (where the scale is negative, with both signs turned), so
  these are applied to one row per group.
- Backward, the gradient of the last linear layer's output y2 = z1 W2^T is one entry per group and feature, plus
  a + b y2 from the statistics, with a and b per feature. So with M = W2^T diag(b) W2 the dense part of the gradient of
  z1 is a W2 + z1 M, without y2. In the same way that of W2 needs only the sum of z1 z1^T.

Letters: N rows, G groups, K slots; C0, C1, C2 features after the three layers.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from partwhole.core.norm import BatchNorm

ELEMENTS = 1 << 19  # of a piece in all its layers: 2 MB of float32


def group_max(
    point: Tensor, place: Tensor, index: Tensor, mask: Tensor | None, linears: list[Tensor], norms: list[BatchNorm]
) -> Tensor:
    """max over k of relu(norm2(W2 relu(norm1(W1 relu(norm0(point[index_k] - place)))))).

    ``point`` (rows, C0), ``place`` (G, C0), ``index`` (G, K) rows of ``point``, of which those that repeat slot 0 come
    last; ``mask`` (G,) says which groups count, the others come out as 0. -> (G, C2). The statistics are those of
    this process.
    """
    with torch.no_grad():
        slot = torch.arange(index.shape[1])
        real = ((index != index[:, :1]) * slot).amax(1) + 1
        order = real.argsort() if mask is None else mask.nonzero().squeeze(1)
        if mask is not None:
            order = order[real[order].argsort()]
        rows = max(1, ELEMENTS // (point.shape[1] + sum(map(len, linears))))
        pieces = Pieces(real[order].tolist(), index.index_select(0, order), rows)
    place = place.index_select(0, order)
    if torch.is_grad_enabled():
        affine = [p for norm in norms for p in (norm.weight, norm.bias)]
        out = _GroupMax.apply(point, place, pieces, norms, *linears, *affine)
    else:
        out = _forward(point, place, pieces, norms, linears)
    return point.new_zeros(len(index), out.shape[1]).index_copy(0, order, out)


class Pieces:
    """Groups with similar numbers of real slots, together at most ``most`` rows (or one group).

    Iterating gives (groups, rows, k, extra, flat): the slice of groups, the slice of rows in a tensor of all pieces,
    slots per group, how often slot 0 counts beyond once, and the index of every row, (groups * k,).
    """

    def __init__(self, real: list[int], index: Tensor, most: int):
        self.index, self.slots = index, index.shape[1]
        self.cuts: list[tuple[int, int, int]] = []
        start = 0
        for stop in range(1, len(real) + 1):
            if stop == len(real) or (stop + 1 - start) * real[stop] > most:
                self.cuts.append((start, stop, real[stop - 1]))
                start = stop
        self.rows = sum((stop - start) * k for start, stop, k in self.cuts)
        self.weight = index.numel()  # rows that the pieces stand for

    def __iter__(self) -> Iterator[tuple[slice, slice, int, int, Tensor]]:
        row = 0
        for start, stop, k in self.cuts:
            rows = slice(row, row + (stop - start) * k)
            yield slice(start, stop), rows, k, self.slots - k, self.index[start:stop, :k].flatten()
            row = rows.stop


def _sums(x: Tensor, k: int, extra: int, other: Tensor | None = None) -> Tensor:
    """Weighted column sums of x (rows, C) and of x * (other or x): (2, C) float64."""
    product = x * (x if other is None else other)
    ones = x.new_ones(1, len(x))
    out = torch.cat([ones @ x, ones @ product])
    if extra:
        out[0] += extra * x[::k].sum(0)
        out[1] += extra * product[::k].sum(0)
    return out.double()


def _statistics(norm: BatchNorm, count: int, sums: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale s and shift t of ``norm`` for s * y + t, with its mean and 1 / deviation."""
    mean, var = norm.running_mean, norm.running_var
    if norm.training and count > 1:  # as in BatchNorm: a single row has no statistics
        first = sums[0] / count
        var = (sums[1] / count - first.square()).clamp(min=0).to(like)
        mean = first.to(like)
        if norm.track_running_stats:
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(var * (count / (count - 1)), norm.momentum)
    inverse = (var + norm.eps).rsqrt()
    scale = norm.weight * inverse
    return scale, norm.bias - mean * scale, mean, inverse


def _relu_backward(d: Tensor, z: Tensor) -> Tensor:
    """d where z > 0, else 0, in place: some 30 times as quick as masked_fill_."""
    return torch.ops.aten.threshold_backward.grad_input(d, z, 0, grad_input=d)


def _hidden(point: Tensor, place: Tensor, flat: Tensor, k: int) -> Tensor:
    """relu(point[flat] - place), both already scaled, of one piece: (rows, C0)."""
    x = point.index_select(0, flat)
    x.view(-1, k, x.shape[1]).sub_(place[:, None])
    return x.relu_()


def _forward(point: Tensor, place: Tensor, pieces: Pieces, norms: list[BatchNorm], linears: list[Tensor]) -> Tensor:
    """Without gradient. While training, the statistics still take their own passes."""
    if any(norm.training for norm in norms):
        return _passes(point, place, pieces, norms, *linears)[0]
    s, t, _, _ = zip(*(_statistics(norm, 0, point, point) for norm in norms), strict=True)
    first, second = (w * scale[:, None] for w, scale in zip(linears, s[1:], strict=True))
    point, place = point * s[0], place * s[0] - t[0]
    out = point.new_empty(len(place), len(linears[1]))
    for groups, _, k, _, flat in pieces:
        x = torch.addmm(t[1], _hidden(point, place[groups], flat, k), first.T).relu_()
        out[groups] = (x @ second.T).view(-1, k, out.shape[1]).amax(1)
    return out.add_(t[2]).relu_()


def _passes(point: Tensor, place: Tensor, pieces: Pieces, norms: list[BatchNorm], w1: Tensor, w2: Tensor):
    """Three passes, one per statistic -> out (G, C2), and what the gradient needs."""
    count, total = pieces.weight, point.new_zeros(2, point.shape[1], dtype=torch.float64)
    for groups, _, k, extra, flat in pieces:
        x = point.index_select(0, flat)
        x.view(-1, k, x.shape[1]).sub_(place[groups, None])
        total += _sums(x, k, extra)
    scale0 = _statistics(norms[0], count, total, point)
    scaled, moved = point * scale0[0], place * scale0[0] - scale0[1]

    total = total.new_zeros(2, len(w1))
    y1 = point.new_empty(pieces.rows, len(w1))
    for groups, rows, k, extra, flat in pieces:
        torch.mm(_hidden(scaled, moved[groups], flat, k), w1.T, out=y1[rows])
        total += _sums(y1[rows], k, extra)
    scale1 = _statistics(norms[1], count, total, point)

    sign = torch.where(norms[2].weight < 0, -1.0, 1.0).to(point)
    signed = w2 * sign[:, None]
    total = total.new_zeros(2, len(w2))
    best = point.new_empty(len(place), len(w2))
    slot = torch.empty(len(place), len(w2), dtype=torch.int64)
    for groups, rows, k, extra, _ in pieces:
        z1 = torch.addcmul(scale1[1], y1[rows], scale1[0]).relu_()
        y2 = signed @ z1.T  # (C2, rows): numpy's argmax is quick on contiguous rows
        product = y2 * y2
        total[0] += y2.sum(1)
        total[1] += product.sum(1)
        if extra:
            total[0] += extra * y2[:, ::k].sum(1)
            total[1] += extra * product[:, ::k].sum(1)
        y2 = y2.view(len(w2), -1, k)
        where = torch.from_numpy(np.argmax(y2.numpy(), axis=2))
        slot[groups] = where.T
        best[groups] = y2.gather(2, where[..., None]).squeeze(2).T
    total[0] *= sign
    best = best * sign
    scale2 = _statistics(norms[2], count, total, point)
    out = torch.addcmul(scale2[1], best, scale2[0]).relu_()
    return out, y1, best, slot, scale0, scale1, scale2


class _GroupMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, point: Tensor, place: Tensor, pieces: Pieces, norms: list[BatchNorm], *weights: Tensor):
        w1, w2 = weights[:2]
        with torch.autocast("cpu", enabled=False):
            out, y1, best, slot, *scales = _passes(point, place, pieces, norms, w1, w2)
        ctx.pieces = pieces
        ctx.save_for_backward(point, place, w1, w2, out, y1, best, slot, *(x for scale in scales for x in scale))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):
        with torch.autocast("cpu", enabled=False):
            return _GroupMax.gradients(ctx, *grads)

    @staticmethod
    def gradients(ctx: Any, *grads: Tensor):
        point, place, w1, w2, out, y1, best, slot, *scales = ctx.saved_tensors
        pieces: Pieces = ctx.pieces
        (s0, t0, m0, i0), (s1, t1, m1, i1), (s2, _, m2, i2) = scales[:4], scales[4:8], scales[8:]
        share = 1 / pieces.weight if pieces.weight > 1 else 0.0

        def through(sums: Tensor, s: Tensor, m: Tensor, i: Tensor):
            """Sums (2, C) of u and u * y -> gradients of weight and bias, and a, b (C,) of the gradient
            s * u + w * (a + b * y) of y."""
            sums = sums.to(s)
            weight = i * (sums[1] - m * sums[0])
            b = -s * i * weight * share
            return weight, sums[0], -s * sums[0] * share - b * m, b

        u2 = _relu_backward(grads[0].clone(), out)
        g2, b2, shift, slope = through(torch.stack([u2.sum(0), (u2 * best).sum(0)]), s2, m2, i2)
        u2 = u2 * s2
        constant, dense = shift @ w2, (w2.T * slope) @ w2
        d1 = torch.empty_like(y1)
        gram, column = w2.new_zeros(2 * [w2.shape[1]], dtype=torch.float64), w2.new_zeros(len(dense))
        d_w2, total = torch.zeros_like(w2), y1.new_zeros(2, y1.shape[1], dtype=torch.float64)
        for groups, rows, k, extra, _ in pieces:
            z1 = torch.addcmul(t1, y1[rows], s1).relu_()
            d = torch.addmm(constant, z1, dense, out=d1[rows])
            first = z1[::k]
            part, sums = z1.T @ z1, z1.sum(0)
            if extra:
                d[::k] += extra * (constant + first @ dense)
                part += extra * (first.T @ first)
                sums += extra * first.sum(0)
            gram += part
            column += sums
            at = slot[groups] + torch.arange(0, len(z1), k)[:, None]
            if len(w2) > 5 * k:  # many entries for few rows: a matrix is quicker
                where = (at * len(w2) + torch.arange(len(w2))).flatten()
                sparse = d.new_zeros(len(d) * len(w2)).scatter_(0, where, u2[groups].flatten()).view(len(d), -1)
                d_w2 += sparse.T @ z1
                d.addmm_(sparse, w2)
            else:
                near = z1.index_select(0, at.flatten()).view(*at.shape, -1)
                d_w2 += (near * u2[groups, :, None]).sum(0)
                d.index_add_(0, at.flatten(), (u2[groups, :, None] * w2).flatten(0, 1))
            _relu_backward(d, z1)
            total += _sums(d, k, 0, y1[rows])
        d_w2 += torch.outer(shift, column) + slope[:, None] * (w2 @ gram.to(w2))
        g1, b1, shift, slope = through(total, s1, m1, i1)

        scaled, moved = point * s0, place * s0 - t0
        d_w1, total = torch.zeros_like(w1), point.new_zeros(2, point.shape[1], dtype=torch.float64)
        d_point, d_place = torch.zeros_like(point), torch.empty_like(place)
        seen, near, around = point.new_zeros(len(point)), torch.zeros_like(point), torch.empty_like(place)
        for groups, rows, k, extra, flat in pieces:
            d, y = d1[rows], y1[rows]
            d.mul_(s1).addcmul_(y, slope).add_(shift)
            if extra:
                d[::k] += extra * torch.addcmul(shift, y[::k], slope)
            z0 = _hidden(scaled, moved[groups], flat, k)
            d_w1 += d.T @ z0
            d0 = _relu_backward(d @ w1, z0)
            y0 = point.index_select(0, flat)
            y0.view(len(moved[groups]), k, -1).sub_(place[groups, None])
            total += _sums(d0, k, 0, y0)
            d_point.index_add_(0, flat, d0)
            d_place[groups] = -d0.view(-1, k, d0.shape[1]).sum(1)
            weight = y0.new_ones(len(y0))
            weight[::k] += extra
            y0[::k] *= 1 + extra
            seen.index_add_(0, flat, weight)
            near.index_add_(0, flat, y0)
            around[groups] = y0.view(-1, k, y0.shape[1]).sum(1)
        g0, b0, shift, slope = through(total, s0, m0, i0)
        d_point = d_point * s0 + seen[:, None] * shift + near * slope
        d_place = d_place * s0 - pieces.slots * shift - around * slope
        return d_point, d_place, None, None, d_w1, d_w2, g0, b0, g1, b1, g2, b2
