"""InfoNCE against a queue of negatives, without a (queries x queue) matrix.

The softmax over the queue is never held: its log-sum-exp and the gradient of that are one attention
call whose keys and values are both the queue, because d logsumexp(q·K) / dq = softmax(q·K) K.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# The private operator of torch that returns (attention output, log-sum-exp) on the CPU.
_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"

# Queue rows per step of the chunked form. Fixed, so that a query's loss does not depend on how many
# other queries share its batch.
_BLOCK = 512


def queue_info_nce(
    queries: Tensor,
    positives: Tensor,
    queue: Tensor,
    temperature: float | Tensor,
    *,
    exclude: Tensor | None = None,
) -> Tensor:
    """InfoNCE of each query: log(exp(s⁺/τ) + Σ_queue exp(s⁻/τ)) − s⁺/τ, with s the dot products.

    van den Oord et al., "Representation Learning with Contrastive Predictive Coding", section 2.3,
    with the queue of He et al., "Momentum Contrast", section 3.1 and equation 1.

    Args:
        queries: (M, D), L2-normalised by the caller.
        positives: (M, D), L2-normalised; row i is the positive of query i.
        queue: (K, D), L2-normalised negatives. Never receives a gradient, and is not kept for the
            backward pass: it may be overwritten before that.
        temperature: τ > 0. A tensor of one element may be learned; its sign is not checked, since
            that would wait for the device.
        exclude: boolean (G, K) with M divisible by G. The queries are G equal runs of consecutive
            rows (the images of a batch); queue rows that are True in row g are no negatives for
            run g. A run with nothing left has loss 0.

    Returns:
        (M,) losses in nats, float32 whatever the inputs and autocast are. Gradients go to queries,
        to positives and to a tensor temperature. Memory is O(M·D + K·D), and O(G·K) for exclude.

    On the CPU this is torch's fused attention kernel (see `fused_available`). Elsewhere, CUDA
    included, it is an exact streamed log-sum-exp over blocks of the queue, whose products follow
    `torch.set_float32_matmul_precision`.

    Raises:
        ValueError: a shape or dtype does not fit, the queue is empty, or a float temperature is
            not positive.
    """
    _check(queries, positives, queue, temperature, exclude)
    with torch.autocast(queries.device.type, enabled=False):
        if isinstance(temperature, Tensor):
            temperature = temperature.float().reshape(())
        # Dividing here leaves the chain rule for queries and temperature to autograd.
        scaled = queries.float() / temperature
        positive = (scaled * positives.float()).sum(dim=1)  # (M,)
        groups = 1 if exclude is None else len(exclude)
        grouped = scaled.unflatten(0, (groups, len(scaled) // groups))  # (M, D) -> (G, M/G, D)
        negatives = _QueueLogSumExp.apply(grouped, queue.detach().float(), exclude)
        # log(e^a + e^b) − a = softplus(b − a): no cancellation where the positive dominates, and
        # value and slope 0 at b = -inf, where nothing is left of the queue.
        return F.softplus(negatives.flatten() - positive)  # (G, M/G) -> (M,)


def fused_available(device: torch.device | str) -> bool:
    """Whether `queue_info_nce` takes torch's fused attention kernel on this device (CPU only).

    The kernel is a private operator of torch, so it is tried once a process on a small case; where
    it is missing or answers otherwise, the slower and equally exact chunked form takes over.
    """
    return torch.device(device).type == "cpu" and _fused_works()


class _QueueLogSumExp(torch.autograd.Function):
    """Log-sum-exp (G, m) of queries (G, m, D) over the rows of queue (K, D) left by exclude."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, queue: Tensor, exclude: Tensor | None) -> Tensor:
        # The kernel divides by the number of queries: none of them would end the process.
        if queries.numel() > 0 and fused_available(queries.device):
            mean, lse = _fused(queries, queue, exclude)
        else:
            mean, lse = _chunked(queries, queue, exclude)
        ctx.save_for_backward(mean)
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mean,) = ctx.saved_tensors
        return grad.unsqueeze(-1) * mean, None, None


def _fused(queries: Tensor, queue: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax-weighted mean of the queue (G, m, D) and log-sum-exp (G, m), by fused attention."""
    groups = queries.shape[0]
    keys = queue.expand(groups, 1, -1, -1)  # (K, D) -> (G, 1, K, D), stride 0: no copy
    mask = None
    if exclude is not None:
        mask = torch.zeros(exclude.shape, device=queries.device, dtype=torch.float32)
        # (G, K) -> (G, 1, 1, K): the kernel broadcasts it over the queries with stride 0.
        mask = mask.masked_fill_(exclude, -math.inf)[:, None, None]
    mean, lse = getattr(torch.ops.aten, _KERNEL)(
        queries.unsqueeze(1), keys, keys, 0.0, False, attn_mask=mask, scale=1.0
    )
    mean, lse = mean.squeeze(1), lse.squeeze(1)  # (G, 1, m, D), (G, 1, m) -> (G, m, D), (G, m)
    if exclude is not None:
        # For a fully masked row the kernel gives no usable log-sum-exp.
        empty = exclude.all(dim=1)  # (G,)
        mean = mean.masked_fill(empty[:, None, None], 0.0)
        lse = lse.masked_fill(empty[:, None], -math.inf)
    return mean, lse


def _chunked(queries: Tensor, queue: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `_fused`, streamed over blocks of the queue on any device.

    Milakov and Gimelshein, "Online normalizer calculation for softmax", algorithm 3.
    """
    highest = queries.new_full(queries.shape[:2], -math.inf)  # (G, m), largest score so far
    total = torch.zeros_like(highest)  # (G, m), Σ exp(score − highest)
    weighted = torch.zeros_like(queries)  # (G, m, D), Σ exp(score − highest)·row
    for start in range(0, len(queue), _BLOCK):
        block = queue[start : start + _BLOCK]  # (k, D)
        scores = queries @ block.T  # (G, m, k)
        if exclude is not None:
            scores.masked_fill_(exclude[:, None, start : start + _BLOCK], -math.inf)
        latest = torch.maximum(highest, scores.amax(dim=-1))
        # While everything is excluded the maximum is -inf, and -inf − -inf would be NaN.
        shift = latest.masked_fill(latest == -math.inf, 0.0)
        weights = scores.sub_(shift.unsqueeze(-1)).exp_()
        fade = (highest - shift).exp_()
        total = total.mul_(fade).add_(weights.sum(dim=-1))
        weighted = weighted.mul_(fade.unsqueeze(-1)).add_(weights @ block)
        highest = latest
    # Each total is at least exp(0) = 1, or exactly 0 with everything excluded.
    mean = weighted.div_(total.clamp_min(1.0).unsqueeze(-1))
    return mean, total.log_().add_(highest)


@functools.cache
def _fused_works() -> bool:
    """Try the fused kernel on two groups, one of them masked, and compare shapes and values."""
    queries = torch.linspace(-1.0, 1.0, 12, dtype=torch.float32, device="cpu").reshape(2, 3, 2)
    queue = torch.linspace(1.0, -2.0, 8, dtype=torch.float32, device="cpu").reshape(4, 2)
    exclude = torch.zeros(2, 4, dtype=torch.bool, device="cpu")
    exclude[1, :2] = True
    try:
        got = _fused(queries, queue, exclude)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # missing, or called otherwise
        return False
    wanted = _chunked(queries, queue, exclude)
    return all(
        g.shape == w.shape and g.dtype == w.dtype and torch.allclose(g, w, rtol=1e-5, atol=1e-5)
        for g, w in zip(got, wanted, strict=True)
    )


def _check(
    queries: Tensor,
    positives: Tensor,
    queue: Tensor,
    temperature: float | Tensor,
    exclude: Tensor | None,
) -> None:
    if queries.ndim != 2:
        raise ValueError(f"queries must be (M, D), got {tuple(queries.shape)}")
    if positives.shape != queries.shape:
        raise ValueError(
            f"positives must be {tuple(queries.shape)} like queries, got {tuple(positives.shape)}"
        )
    if queue.ndim != 2 or queue.shape[1] != queries.shape[1] or len(queue) == 0:
        raise ValueError(
            f"queue must be (K, {queries.shape[1]}) with K >= 1 for queries "
            f"{tuple(queries.shape)}, got {tuple(queue.shape)}"
        )
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1:
            raise ValueError(
                f"temperature must have 1 element, got {temperature.numel()} "
                f"in {tuple(temperature.shape)}"
            )
    elif not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a finite number > 0, got {temperature}")
    if exclude is None:
        return
    if exclude.dtype != torch.bool:
        raise ValueError(f"exclude must be boolean, got {exclude.dtype}")
    if exclude.ndim != 2 or exclude.shape[1] != len(queue):
        raise ValueError(
            f"exclude must be (G, {len(queue)}) for queue {tuple(queue.shape)}, "
            f"got {tuple(exclude.shape)}"
        )
    if len(exclude) == 0 or len(queries) % len(exclude):
        raise ValueError(
            f"exclude has {len(exclude)} groups, which does not divide {len(queries)} queries"
        )
