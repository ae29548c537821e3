"""Log-sum-exp over the queue: a fused attention kernel where available, else blocks of rows."""

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Private operators of torch that return (attention output, log-sum-exp, ...), fastest first.
# cuDNN's takes less than a third of the other's time, but does not support float32.
_KERNELS = {
    "cpu": ("_scaled_dot_product_flash_attention_for_cpu",),
    "cuda": ("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_efficient_attention"),
}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# `_chunked` takes blocks of queue rows that give this many logits (16 MiB), but at least
# _LEAST_BLOCK rows: with very many queries smaller products would be slow.
_BLOCK_LOGITS, _LEAST_BLOCK = 2**22, 512

# A GPU kernel gives each multiprocessor a block of queries and the whole queue: with few queries
# most are idle. On an H200 `_chunked` was faster than cuDNN's kernel below 600 queries, and faster
# than the other kernel below 2,700.
_LEAST_ON_GPU = 1024


@functools.cache
def fused_kernel(kind: str, dtype: torch.dtype, dim: int) -> str | None:
    """Return the fused attention kernel of a device type for features of a dtype and length.

    None if there is none: then the slower exact form over blocks is used. The kernels are private
    operators of torch, so each is tested once per process on a small case.
    """
    if dtype not in _DTYPES or (kind == "cuda" and (dim % 8 or not torch.cuda.is_available())):
        return None
    return next((k for k in _KERNELS.get(kind, ()) if _works(k, kind, dtype, dim)), None)


class _QueueLogSumExp(torch.autograd.Function):
    """Log-sum-exp (G, m) of queries (G, m, D) over the rows of queue (K, D) not excluded."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, queue: Tensor, exclude: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        kernel = None
        if _enough(queries):
            kernel = fused_kernel(queries.device.type, dtype, queries.shape[-1])
        if kernel is None:
            mean, lse = _chunked(queries, queue.float(), exclude)
        else:
            mean, lse = _fused(kernel, _as(queries, dtype), _as(queue, dtype), exclude)
        ctx.save_for_backward(mean)
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (mean,) = ctx.saved_tensors
        return grad.unsqueeze(-1) * mean, None, None, None


def _as(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast features to the dtype of the products, contiguous: the kernels assume it.

    Values beyond float16 are clamped to its largest number: infinities would give NaN.
    """
    if dtype == torch.float16:
        most = torch.finfo(dtype).max
        features = features.clamp(-most, most)  # NaN stays NaN
    return features.to(dtype).contiguous()


def _enough(queries: Tensor) -> bool:
    """Return True if queries (G, m, D) are enough for a kernel; none would crash the CPU kernel."""
    least = _LEAST_ON_GPU if queries.device.type == "cuda" else 1
    return queries.shape[0] * queries.shape[1] >= least


def _fused(
    kernel: str, queries: Tensor, queue: Tensor, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the softmax-weighted queue mean (G, m, D) and log-sum-exp (G, m) of a fused kernel."""
    if exclude is None:
        return _attend(kernel, queries, queue, None)
    mask = _additive(exclude, queries.dtype)  # (G, K)
    if queries.shape[1] == 1:  # one mask row per query: one group of G, not G groups of one
        mean, lse = _attend(kernel, queries.transpose(0, 1), queue, mask[None, None])
        mean, lse = mean.transpose(0, 1), lse.transpose(0, 1)  # (1, G, D), (1, G) -> (G, 1, ...)
    else:  # stride 0 over the queries of a group: no copy
        mask = mask[:, None, None].expand(-1, -1, queries.shape[1], -1)  # (G, 1, m, K)
        # In bfloat16 the CPU kernel packs the queue for each group and holds all packs in memory.
        packs = queries.device.type == "cpu" and queries.dtype == torch.bfloat16
        size = 1 if packs else len(mask)
        runs = zip(torch.split(queries, size), torch.split(mask, size), strict=True)
        parts = (_attend(kernel, q, queue, m) for q, m in runs)
        mean, lse = map(torch.cat, zip(*parts, strict=True))
    # The kernel gives no usable log-sum-exp for a fully masked row.
    empty = exclude.all(dim=1)  # (G,)
    mean = mean.masked_fill(empty[:, None, None], 0.0)
    return mean, lse.masked_fill(empty[:, None], -math.inf)


def _attend(
    kernel: str, queries: Tensor, queue: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Call a kernel with the queue as keys and values of every group of queries (G, m, D)."""
    groups, count, _ = queries.shape
    keys = queue.expand(groups, 1, -1, -1)  # (K, D) -> (G, 1, K, D), stride 0: no copy
    call = getattr(torch.ops.aten, kernel)
    if queries.device.type == "cpu":
        mean, lse = call(queries.unsqueeze(1), keys, keys, 0.0, False, attn_mask=mask, scale=1.0)
    else:
        mean, lse, *_ = call(queries.unsqueeze(1), keys, keys, mask, True, scale=1.0)
    # The log-sum-exp is (G, 1, m), or (G, 1, m, 1) from cuDNN, or padded beyond m on a GPU.
    return mean.squeeze(1).float(), lse.flatten(1)[:, :count]  # (G, m, D), (G, m)


def _additive(exclude: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask (G, K) as numbers to add to the scores: 0 or -inf."""
    groups, size = exclude.shape
    # Pad rows to a multiple of 16 elements, as torch does: the GPU kernel reads aligned words.
    padded = torch.zeros(groups, -(-size // 16) * 16, device=exclude.device, dtype=dtype)
    return padded[:, :size].masked_fill_(exclude, -math.inf)


def _chunked(queries: Tensor, queue: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the results of `_fused`, in float32, streamed over blocks of the queue.

    Runs on any device. Milakov and Gimelshein, "Online normalizer calculation for softmax",
    algorithm 3.
    """
    highest = queries.new_full(queries.shape[:2], -math.inf)  # (G, m), largest score so far
    total = torch.zeros_like(highest)  # (G, m), Σ exp(score − highest)
    weighted = torch.zeros_like(queries)  # (G, m, D), Σ exp(score − highest)·row
    rows = max(_LEAST_BLOCK, _BLOCK_LOGITS // max(highest.numel(), 1))
    for start in range(0, len(queue), rows):
        block = queue[start : start + rows]  # (k, D)
        scores = queries @ block.T  # (G, m, k)
        if exclude is not None:
            scores.masked_fill_(exclude[:, None, start : start + rows], -math.inf)
        latest = torch.maximum(highest, scores.amax(dim=-1))
        # The maximum is -inf while every row is excluded, and -inf − -inf would be NaN.
        shift = latest.masked_fill(latest == -math.inf, 0.0)
        weights = scores.sub_(shift.unsqueeze(-1)).exp_()
        fade = (highest - shift).exp_()
        total = total.mul_(fade).add_(weights.sum(dim=-1))
        weighted = weighted.mul_(fade.unsqueeze(-1)).add_(weights @ block)
        highest = latest
    # Each total is at least exp(0) = 1, or exactly 0 if every row is excluded.
    mean = weighted.div_(total.clamp_min(1.0).unsqueeze(-1))
    return mean, total.log_().add_(highest)


def _works(kernel: str, kind: str, dtype: torch.dtype, dim: int) -> bool:
    """Compare a kernel with `_chunked` on two groups, one of them masked: shapes and values."""
    queries = torch.linspace(-8 / dim, 8 / dim, 6 * dim, dtype=dtype, device=kind)
    queries = queries.reshape(2, 3, dim)
    queue = torch.linspace(1.0, -2.0, 5 * dim, dtype=dtype, device=kind).reshape(5, dim)
    exclude = torch.zeros(2, 5, dtype=torch.bool, device=kind)
    exclude[1, :2] = True
    try:
        got = _fused(kernel, queries, queue, exclude)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # missing, or other arguments
        return False
    expected = _chunked(queries.float(), queue.float(), exclude)
    tolerance = 1e-5 if dtype == torch.float32 and kind == "cpu" else 2e-2  # TF32, half precision
    return all(
        g.shape == w.shape
        and g.dtype == w.dtype
        and torch.allclose(g, w, rtol=tolerance, atol=tolerance)
        for g, w in zip(got, expected, strict=True)
    )
