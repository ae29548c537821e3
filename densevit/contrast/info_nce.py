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

# The private operators of torch that return (attention output, log-sum-exp, ...) on a device, the
# fastest first: cuDNN's takes less than a third of the other's time, and no float32.
_KERNELS = {
    "cpu": ("_scaled_dot_product_flash_attention_for_cpu",),
    "cuda": ("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_efficient_attention"),
}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# The chunked form takes as many queue rows at once as give this many logits (16 MiB), but never
# fewer than the other number: with very many queries the products would become slow.
_BLOCK_LOGITS, _LEAST_BLOCK = 2**22, 512

# The kernels of a GPU give each of its processors a block of queries and all of the queue: with few
# queries most of them are idle. On an H200 the chunked form was faster than cuDNN's kernel for less
# than 600 queries, and than the other for less than 2,700.
_LEAST_ON_GPU = 1024


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

    With queries in bfloat16 or float16, or under autocast to one of them, the products with the
    queue are of that type, and their sums, the softmax and all else are float32. This is torch's
    fused attention kernel where `fused_available` says so. Elsewhere, and on a GPU with few
    queries, it is an exact streamed log-sum-exp over blocks of the queue, in float32 throughout,
    whose products follow `torch.set_float32_matmul_precision`.

    Raises:
        ValueError: a shape or dtype does not fit, the queue is empty, or a float temperature is
            not positive.
    """
    _check(queries, positives, queue, temperature, exclude)
    dtype = _product_dtype(queries)
    with torch.autocast(queries.device.type, enabled=False):
        if isinstance(temperature, Tensor):
            temperature = temperature.float().reshape(())
        # Dividing here leaves the chain rule for queries and temperature to autograd.
        scaled = queries.float() / temperature
        positive = (scaled * positives.float()).sum(dim=1)  # (M,)
        if exclude is not None and exclude.device.type == "cpu" and not exclude.any():
            exclude = None  # the common case with many images; elsewhere looking means waiting
        groups = _threads_runs(scaled) if exclude is None else len(exclude)
        grouped = scaled.unflatten(0, (groups, len(scaled) // groups))  # (M, D) -> (G, M/G, D)
        negatives = _QueueLogSumExp.apply(grouped, queue.detach(), exclude, dtype)
        # log(e^a + e^b) − a = softplus(b − a): no cancellation where the positive dominates, and
        # value and slope 0 at b = -inf, where nothing is left of the queue.
        return F.softplus(negatives.flatten() - positive)  # (G, M/G) -> (M,)


def fused_available(
    device: torch.device | str, dtype: torch.dtype = torch.float32, dim: int = 8
) -> bool:
    """Whether `queue_info_nce` takes a fused attention kernel of torch for features of `dim`.

    The kernels are private operators of torch, so each is tried once a process on a small case;
    where all are missing or answer otherwise, the slower and exact chunked form takes over.
    """
    return _kernel(torch.device(device).type, dtype, dim) is not None


def _product_dtype(queries: Tensor) -> torch.dtype:
    kind = queries.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else queries.dtype
    return dtype if dtype in _DTYPES else torch.float32


def _threads_runs(queries: Tensor) -> int:
    """Into how many equal runs to cut queries (M, D) for the kernel, where nothing is excluded.

    The CPU kernel hands blocks of up to 256 queries to threads, so that with few blocks some of
    them wait for the last: a run a thread was 18 % faster for 1,568 queries on 2 threads.
    """
    threads = torch.get_num_threads() if queries.device.type == "cpu" else 1
    fits = len(queries) % threads == 0 and len(queries) // threads >= 192
    return threads if fits else 1


class _QueueLogSumExp(torch.autograd.Function):
    """Log-sum-exp (G, m) of queries (G, m, D) over the rows of queue (K, D) left by exclude."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, queue: Tensor, exclude: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        if _enough(queries) and fused_available(queries.device, dtype, queries.shape[-1]):
            mean, lse = _fused(_as(queries, dtype), _as(queue, dtype), exclude)
        else:
            mean, lse = _chunked(queries, queue.float(), exclude)
        ctx.save_for_backward(mean)
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (mean,) = ctx.saved_tensors
        return grad.unsqueeze(-1) * mean, None, None, None


def _as(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Features in the type of the products, in rows that lie together: the kernels assume it.

    What float16 cannot hold becomes the largest number that it can: infinities would make NaN.
    """
    if dtype == torch.float16:
        most = torch.finfo(dtype).max
        features = features.clamp(-most, most)  # NaN stays NaN
    return features.to(dtype).contiguous()


def _enough(queries: Tensor) -> bool:
    """Whether there are queries (G, m, D) enough for a kernel: that of the CPU divides by their
    number, and none of them would end the process."""
    least = _LEAST_ON_GPU if queries.device.type == "cuda" else 1
    return queries.shape[0] * queries.shape[1] >= least


def _fused(
    queries: Tensor, queue: Tensor, exclude: Tensor | None, kernel: str | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax-weighted mean of the queue (G, m, D) and log-sum-exp (G, m), by fused attention."""
    kernel = kernel or _kernel(queries.device.type, queries.dtype, queries.shape[-1])
    if exclude is None:
        return _attend(kernel, queries, queue, None)
    mask = _additive(exclude, queries.dtype)  # (G, K)
    if queries.shape[1] == 1:  # a row of the mask for each query: one run of G, not G runs of one
        mean, lse = _attend(kernel, queries.transpose(0, 1), queue, mask[None, None])
        mean, lse = mean.transpose(0, 1), lse.transpose(0, 1)  # (1, G, D), (1, G) -> (G, 1, ...)
    else:  # stride 0 over the queries of a run: no copy
        mask = mask[:, None, None].expand(-1, -1, queries.shape[1], -1)  # (G, 1, m, K)
        # In bfloat16 the CPU kernel packs the queue anew for each run, and holds all the packs.
        packs = queries.device.type == "cpu" and queries.dtype == torch.bfloat16
        runs = zip(*(t.split(1 if packs else len(mask)) for t in (queries, mask)), strict=True)
        parts = (_attend(kernel, q, queue, m) for q, m in runs)
        mean, lse = map(torch.cat, zip(*parts, strict=True))
    # For a fully masked row the kernel gives no usable log-sum-exp.
    empty = exclude.all(dim=1)  # (G,)
    mean = mean.masked_fill(empty[:, None, None], 0.0)
    return mean, lse.masked_fill(empty[:, None], -math.inf)


def _attend(
    kernel: str, queries: Tensor, queue: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A kernel of the device, with the queue as keys and values of every run (G, m, D)."""
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
    """The mask (G, K) as numbers, 0 or -inf."""
    groups, size = exclude.shape
    # Rows of a whole number of 16 elements, as torch pads them: the GPU kernel reads aligned words.
    padded = torch.zeros(groups, -(-size // 16) * 16, device=exclude.device, dtype=dtype)
    return padded[:, :size].masked_fill_(exclude, -math.inf)


def _chunked(queries: Tensor, queue: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `_fused`, in float32, streamed over blocks of the queue on any device.

    Milakov and Gimelshein, "Online normalizer calculation for softmax", algorithm 3.
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
def _kernel(kind: str, dtype: torch.dtype, dim: int) -> str | None:
    """The first kernel of a kind of device that works for features of a type and length."""
    if dtype not in _DTYPES or (kind == "cuda" and (dim % 8 or not torch.cuda.is_available())):
        return None
    return next((k for k in _KERNELS.get(kind, ()) if _works(k, kind, dtype, dim)), None)


def _works(kernel: str, kind: str, dtype: torch.dtype, dim: int) -> bool:
    """Try a kernel on two runs, one of them masked, and compare shapes and values."""
    queries = torch.linspace(-8 / dim, 8 / dim, 6 * dim, dtype=dtype, device=kind)
    queries = queries.reshape(2, 3, dim)
    queue = torch.linspace(1.0, -2.0, 5 * dim, dtype=dtype, device=kind).reshape(5, dim)
    exclude = torch.zeros(2, 5, dtype=torch.bool, device=kind)
    exclude[1, :2] = True
    try:
        got = _fused(queries, queue, exclude, kernel)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # missing, or called otherwise
        return False
    wanted = _chunked(queries.float(), queue.float(), exclude)
    tolerance = 1e-5 if dtype == torch.float32 and kind == "cpu" else 2e-2  # TF32, half precision
    return all(
        g.shape == w.shape
        and g.dtype == w.dtype
        and torch.allclose(g, w, rtol=tolerance, atol=tolerance)
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
