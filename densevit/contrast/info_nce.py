"""InfoNCE against a queue of negatives, without a (queries x queue) matrix.

The softmax over the queue is never stored. One attention call with the queue as keys and values
gives its log-sum-exp and the gradient, because d logsumexp(q·K) / dq = softmax(q·K) K.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from densevit.contrast.precision import without_autocast
from densevit.contrast.queue_attention import _DTYPES, _QueueLogSumExp


def queue_info_nce(
    queries: Tensor,
    positives: Tensor,
    queue: Tensor,
    temperature: float | Tensor,
    *,
    exclude: Tensor | None = None,
) -> Tensor:
    """Return each query's InfoNCE loss, log(exp(s⁺/τ) + Σ_queue exp(s⁻/τ)) − s⁺/τ.

    s are dot products. van den Oord et al., "Representation Learning with Contrastive Predictive
    Coding", section 2.3; queue of He et al., "Momentum Contrast", section 3.1 and equation 1.

    Args:
        queries: (M, D), L2-normalized by the caller.
        positives: (M, D), L2-normalized; row i is the positive of query i.
        queue: (K, D), L2-normalized negatives. Receives no gradient and is not saved for the
            backward pass: it may be overwritten before.
        temperature: τ > 0. A tensor of one element may be learned; its sign is not checked, since
            that would wait for the device.
        exclude: boolean (G, K) with M divisible by G. The queries form G equal groups of
            consecutive rows (the images of a batch). Queue rows that are True in row g are not
            negatives for group g. The loss is 0 if no negative is left.

    Returns:
        (M,) losses in nats, always float32. Gradients go to queries, positives and a tensor
        temperature. Memory is O(M·D + K·D), and O(G·K) for exclude.

    If queries are bfloat16 or float16, or under autocast to one of them, products with the queue
    have that dtype; sums, softmax and the rest are float32. torch's fused attention kernel is used
    where `fused_kernel` names one. Elsewhere, and for few queries on a GPU, an exact
    log-sum-exp is streamed over blocks of the queue in float32; its products follow
    `torch.set_float32_matmul_precision`.

    Raises:
        ValueError: a shape or dtype does not fit, the queue is empty, or a float temperature is
            not positive.
    """
    _check(queries, positives, queue, temperature, exclude)
    dtype = _product_dtype(queries)
    with without_autocast(queries.device.type):
        if isinstance(temperature, Tensor):
            temperature = temperature.float().reshape(())
        # Divide here: autograd then applies the chain rule to queries and temperature.
        scaled = queries.float() / temperature
        positive = (scaled * positives.float()).sum(dim=1)  # (M,)
        if exclude is not None and exclude.device.type == "cpu" and not exclude.any():
            exclude = None  # common with many images; on a GPU the check would wait for the device
        groups = _threads_runs(scaled) if exclude is None else len(exclude)
        grouped = scaled.view(groups, len(scaled) // groups, scaled.shape[1])  # (G, M/G, D)
        negatives: Tensor = _QueueLogSumExp.apply(  # type: ignore[no-untyped-call]  # torch: no hints
            grouped, queue.detach(), exclude, dtype
        )
        # log(e^a + e^b) − a = softplus(b − a): no cancellation where the positive dominates. Value
        # and slope are 0 at b = -inf, where every negative is excluded.
        return F.softplus(negatives.flatten() - positive)  # (G, M/G) -> (M,)


def _product_dtype(queries: Tensor) -> torch.dtype:
    kind = queries.device.type
    dtype = queries.dtype
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    return dtype if dtype in _DTYPES else torch.float32


def _threads_runs(queries: Tensor) -> int:
    """Return the number of equal groups to split queries (M, D) into if nothing is excluded.

    The CPU kernel gives blocks of up to 256 queries to threads; with few blocks some threads idle.
    One group per thread was 18 % faster for 1,568 queries on 2 threads.
    """
    threads = torch.get_num_threads() if queries.device.type == "cpu" else 1
    fits = len(queries) % threads == 0 and len(queries) // threads >= 192
    return threads if fits else 1


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
