"""The loss compared with plain float64 logits; its memory; the private operators that it uses."""

import json
import math
from itertools import accumulate

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from densevit.contrast import queue_attention
from densevit.contrast.info_nce import queue_info_nce


def fused_available(device, dtype=torch.float32, dim=8):
    return queue_attention.fused_kernel(torch.device(device).type, dtype, dim) is not None


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Unit roundoff: half the distance between 1 and the next number.
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.fixture(params=["fused", "chunked", "blocks"])
def form(request, monkeypatch):
    """Select the kernel; the chunked form with small queues at once; the same in small blocks."""
    if request.param != "fused":
        monkeypatch.setattr(queue_attention, "fused_kernel", lambda *_: None)
    if request.param == "blocks":
        monkeypatch.setattr(queue_attention, "_BLOCK_LOGITS", 2**12)
        monkeypatch.setattr(queue_attention, "_LEAST_BLOCK", 100)
    return request.param


@pytest.fixture
def fresh_check():
    """Forget the cached answers of the self-check, before and after."""
    queue_attention.fused_kernel.cache_clear()
    yield
    queue_attention.fused_kernel.cache_clear()


@pytest.fixture
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def unit(*shape, seed, dtype=torch.float32):
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(noise, dim=-1).to(dtype)


def triple(m, k, d):
    return unit(m, d, seed=0), unit(m, d, seed=1), unit(k, d, seed=2)


def some_excluded(groups, size, seed=3):
    return torch.rand(groups, size, generator=torch.Generator().manual_seed(seed)) < 0.3


def scores(scaled, queue, exclude=None):
    """Logits (M, K) of the negatives, -inf where excluded."""
    negatives = scaled @ queue.T
    if exclude is None:
        return negatives
    return negatives.masked_fill(
        exclude.repeat_interleave(len(scaled) // len(exclude), dim=0), -math.inf
    )


def reference(queries, positives, queue, temperature, exclude=None):
    """Plain cross-entropy over the full logits in float64, with the positive in column 0."""
    q, p, k = queries.double() / temperature, positives.double(), queue.double()
    logits = torch.cat([(q * p).sum(1, keepdim=True), scores(q, k, exclude)], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64), reduction="none")


def relative_error(got, wanted):
    return ((got.double() - wanted).abs().max() / wanted.abs().max()).item()


def run(function, dtype, inputs, temperature, exclude=None):
    """Return loss and gradients; every query has another upstream gradient."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs[:2]]
    leaves.append(torch.tensor(temperature, dtype=dtype, requires_grad=True))
    loss = function(leaves[0], leaves[1], inputs[2], leaves[2], exclude=exclude)
    (loss * torch.linspace(0.5, 2.0, len(loss), dtype=dtype)).sum().backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def assert_right(inputs, temperature, exclude=None):
    """Check loss and gradients within 1e-5 of float64; return the computed values."""
    got = run(queue_info_nce, torch.float32, inputs, temperature, exclude)
    wanted = run(reference, torch.float64, inputs, temperature, exclude)
    assert got[0].shape == (len(inputs[0]),)
    assert got[0].dtype == torch.float32
    # Each separately: `max` would skip a NaN.
    assert all(relative_error(g, w) < 1e-5 for g, w in zip(got, wanted, strict=True))
    return got


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize(("m", "k", "d"), [(1, 1, 2), (40, 513, 32), (60, 1500, 17), (7, 3, 128)])
def test_loss_and_gradients_equal_the_float64_reference(form, m, k, d, temperature):
    assert_right(triple(m, k, d), temperature)


@pytest.mark.parametrize("groups", [1, 4, 60])  # 60: a row of the mask for each query
def test_excluded_entries_are_left_out_of_their_group_only(form, groups):
    inputs, exclude = triple(60, 1500, 24), some_excluded(groups, 1500)
    loss, *_ = assert_right(inputs, 0.2, exclude)
    # The mask matters in this case: without it the loss is different.
    assert relative_error(queue_info_nce(*inputs, 0.2), loss.double()) > 1e-3


def test_excluding_nothing_is_the_loss_without_exclude(form):
    inputs = triple(60, 1500, 24)
    for groups in (1, 4, 60):
        nothing = torch.zeros(groups, 1500, dtype=torch.bool)
        assert torch.equal(
            queue_info_nce(*inputs, 0.2, exclude=nothing), queue_info_nce(*inputs, 0.2)
        )


@pytest.mark.parametrize("span", [(0, 600), (0, 1499), (1, 1500), (512, 1500), (900, 1500)])
def test_whole_blocks_of_the_queue_may_be_excluded(form, span):
    exclude = torch.zeros(2, 1500, dtype=torch.bool)
    exclude[0, span[0] : span[1]] = True
    assert_right(triple(20, 1500, 16), 0.1, exclude)


@pytest.mark.parametrize("groups", [3, 12])
def test_group_without_negatives_has_loss_zero_and_finite_gradients(form, groups):
    inputs, rows = triple(12, 700, 16), 12 // groups
    exclude = torch.zeros(groups, 700, dtype=torch.bool)
    exclude[1] = True
    loss, gradient, *_ = assert_right(inputs, 0.2, exclude)
    assert (loss[rows : 2 * rows] == 0).all()
    assert (gradient[rows : 2 * rows] == 0).all()
    exclude[:] = True
    assert all((g == 0).all() for g in run(queue_info_nce, torch.float32, inputs, 0.2, exclude))


# The fixture only sets constants, which are the same for every example.
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.integers(1, 5),
    rows=st.integers(1, 6),
    k=st.integers(1, 250),
    d=st.integers(1, 20),
    excluding=st.booleans(),
)
def test_any_shape_gives_the_float64_loss(form, groups, rows, k, d, excluding):
    exclude = some_excluded(groups, k, seed=k) if excluding else None
    inputs = triple(groups * rows, k, d)
    torch.testing.assert_close(
        queue_info_nce(*inputs, 0.2, exclude=exclude).double(),
        reference(*inputs, 0.2, exclude), rtol=1e-5, atol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("m", [400, 401])
def test_loss_is_right_on_several_threads(same_threads, m):
    torch.set_num_threads(2)  # 400 queries are split into one range per thread, 401 are not
    assert_right(triple(m, 300, 16), 0.2)


@pytest.mark.parametrize(("logits", "least"), [(1, 1), (1, 64), (3000, 1), (10**4, 400)])
def test_blocks_of_any_size_give_the_same(monkeypatch, logits, least):
    monkeypatch.setattr(queue_attention, "fused_kernel", lambda *_: None)
    monkeypatch.setattr(queue_attention, "_BLOCK_LOGITS", logits)
    monkeypatch.setattr(queue_attention, "_LEAST_BLOCK", least)
    with Recorder() as recorder:
        assert_right(triple(20, 513, 8), 0.1)
        assert_right(triple(20, 513, 8), 0.1, some_excluded(4, 513))
    assert "_scaled_dot_product_flash_attention_for_cpu" not in recorder.names


def test_loss_keeps_its_digits_where_the_positive_dominates(form):
    q = unit(10, 64, seed=0)
    inputs = q, q, -q[:5] + 0.1 * unit(5, 64, seed=1)
    wanted = reference(*inputs, 0.1)
    assert wanted.min() < 1e-3
    torch.testing.assert_close(queue_info_nce(*inputs, 0.1).double(), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("groups", [None, 3])
def test_no_queries_give_no_losses(form, groups):
    # The kernel itself crashes here with a division by zero.
    none = torch.zeros(0, 16, requires_grad=True)
    exclude = None if groups is None else some_excluded(groups, 100)
    loss = queue_info_nce(none, none, unit(100, 16, seed=2), 0.2, exclude=exclude)
    loss.sum().backward()
    assert loss.shape == (0,)


@pytest.mark.parametrize("groups", [None, 4, 60])
@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("how", ["autocast", "inputs"])
def test_half_precision_stays_within_its_rounding(how, dtype, temperature, groups):
    """The fused form, compared with float64 on the factors that it multiplies and on its inputs."""
    u, exclude = ROUNDOFF[dtype], None if groups is None else some_excluded(groups, 1500)
    q, p, k = (x if how == "autocast" else x.to(dtype) for x in triple(60, 1500, 17))
    leaf = q.clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=how == "autocast"):
        loss = queue_info_nce(leaf, p, k, temperature, exclude=exclude)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert leaf.grad.dtype == q.dtype
    loss, gradient = loss.detach().double(), leaf.grad.double()
    held = u * gradient.abs() if how == "inputs" else 0.0  # the gradient has the type of its leaf

    # 1. Of the rounded factors: sums, softmax and loss lose no more than float32 does.
    factors = (q.float() / temperature).to(dtype).double(), k.to(dtype).double()
    logits = scores(*factors, exclude)
    positive = (q.double() * p.double()).sum(1) / temperature
    wanted = F.softplus(logits.logsumexp(1) - positive)
    assert relative_error(loss, wanted) < 1e-5
    #    The kernel rounds the weights of the softmax and its answer: (1 + u)² − 1 of Σ w·|k|. What
    #    float16 cannot hold of a weight is below 2⁻²⁵ for each of the 1,500 rows.
    slope = torch.sigmoid(logits.logsumexp(1) - positive)[:, None] / temperature
    weights = logits.softmax(1)
    bound = (2 * u + u * u) * (weights @ factors[1].abs()) + 1500 * 2.0**-25
    wanted = slope * (weights @ factors[1] - p.double())
    assert ((gradient - wanted).abs() <= slope * bound + held + 1e-6 / temperature).all()

    # 2. Of the inputs: two factors rounded move a logit by at most e = ((1 + u)² − 1)/τ, since
    #    Σ|q·k| <= 1, and so the log-sum-exp and the loss.
    e = (2 * u + u * u) / temperature
    exact = q.double().requires_grad_()
    wanted = reference(exact, p, k, temperature, exclude)
    wanted.sum().backward()
    assert ((loss - wanted).abs() <= e + 1e-5 / temperature).all()
    #    A weight then changes by at most the factor exp(2e), its row by (1 + u), the kernel's
    #    rounding is (1 + u)², and the slope of the loss moves by e/4 of |mean − p| <= 2.
    bound = (e / 2 + math.exp(2 * e) * (1 + u) ** 3 - 1 + 1e-5) / temperature
    assert ((gradient - exact.grad).norm(dim=1) <= bound + u / temperature).all()


@pytest.mark.parametrize("form", ["chunked", "blocks"], indirect=True)
def test_without_a_kernel_half_precision_inputs_are_computed_in_float32(form):
    inputs = [x.bfloat16() for x in triple(40, 1500, 32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = queue_info_nce(*inputs, 0.2)
    assert relative_error(loss, reference(*inputs, 0.2)) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_half_precision_gives_no_nan_at_the_ends(form, dtype, temperature):
    # Positive and negatives as near and as far as possible, with an ordinary queue.
    q = unit(24, 128, seed=0, dtype=dtype)
    for p, k in ((q, q), (-q, q), (q, -q), (q, q[:1].expand(700, -1))):
        leaf = q.clone().requires_grad_()
        exclude = torch.eye(24, dtype=torch.bool) if len(k) == 24 else some_excluded(4, 700)
        for left_out in (None, exclude):
            loss = queue_info_nce(leaf, p, k, temperature, exclude=left_out)
            loss.sum().backward()
            assert loss.dtype == torch.float32
            assert loss.isfinite().all()
            assert leaf.grad.isfinite().all()


def test_loss_of_a_fresh_model_is_near_log_of_queue_size_plus_one(form):
    m, k, d, temperature = 4096, 4096, 128, 0.2
    loss = queue_info_nce(*triple(m, k, d), temperature)
    # E exp(s/τ) of two random unit vectors is the hypergeometric 0F1(D/2; 1/(4τ²)), which is
    # exp(1/(2Dτ²)) to 1e-4: ln(K+1) + 0.098. The positive's own score has mean 0 and standard
    # deviation 1/(τ√D) = 0.44, so 4,096 of them give the mean to 0.007; allowed are five of those.
    moment, term = 0.0, 1.0
    for j in range(1, 60):
        moment += term
        term *= (1 / (4 * temperature**2)) / (j * (d / 2 + j - 1))
    expected = math.log(k + 1) + math.log(moment)
    assert expected == pytest.approx(math.log(k + 1) + 1 / (2 * d * temperature**2), abs=2e-4)
    assert loss.mean().item() == pytest.approx(expected, abs=5 / (temperature * math.sqrt(d * m)))


def test_queue_gets_no_gradient_and_may_change_before_the_backward_pass(form):
    q, p, queue = (x.requires_grad_() for x in triple(20, 300, 16))
    loss = queue_info_nce(q, p, queue, 0.2)
    (wanted,) = torch.autograd.grad(loss.sum(), q, retain_graph=True)
    with torch.no_grad():
        queue.zero_()
    loss.sum().backward()
    assert queue.grad is None
    assert torch.equal(q.grad, wanted)


def test_tensor_and_float_temperature_agree(form):
    inputs, temperature = triple(20, 300, 16), torch.full((1,), 0.3, requires_grad=True)
    loss = queue_info_nce(*inputs, temperature)
    assert loss.shape == (20,)
    assert torch.equal(loss, queue_info_nce(*inputs, 0.3))
    loss.sum().backward()
    assert temperature.grad.shape == (1,)


@pytest.mark.parametrize("how", ["checkpoint", "compile"])
def test_checkpointing_and_compiling_change_nothing(form, how):
    def wrapped(*args, exclude):
        if how == "compile":
            return torch.compile(queue_info_nce, backend="aot_eager")(*args, exclude=exclude)
        return checkpoint(queue_info_nce, *args, exclude=exclude, use_reentrant=False)

    torch._dynamo.reset()
    for exclude in (None, some_excluded(4, 300)):
        plain, got = (
            run(function, torch.float32, triple(20, 300, 16), 0.2, exclude)
            for function in (queue_info_nce, wrapped)
        )
        for g, w in zip(got, plain, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-7)


def strided(x, how):
    """Return the same values with the memory layout of a transposition or a slice."""
    if how == "transposed":
        return x.T.contiguous().T
    return torch.stack([x, x.flip(0)], dim=2).flatten(1)[:, ::2]


@pytest.mark.parametrize("how", ["transposed", "sliced"])
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_how_features_lie_in_memory_changes_nothing(form, dtype, which, how):
    inputs = [x.to(dtype) for x in triple(60, 300, 24)]
    other = [strided(x, how) if i in which else x for i, x in enumerate(inputs)]
    assert all(torch.equal(a, b) for a, b in zip(inputs, other, strict=True))
    for exclude in (None, some_excluded(4, 300)):
        got, wanted = (queue_info_nce(*f, 0.2, exclude=exclude) for f in (other, inputs))
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
        # The gradient of the queries also uses what the kernel saved.
        gradients = []
        for features in (other, inputs):
            leaf = features[0].detach().requires_grad_()
            queue_info_nce(leaf, *features[1:], 0.2, exclude=exclude).sum().backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(
            *gradients, rtol=1e-2 if dtype != torch.float32 else 1e-6, atol=1e-6
        )


@pytest.mark.parametrize(
    ("dtype", "norm"),
    [(d, n) for d in DTYPES[:2] for n in (1e3, 1e8, 1e16)] + [(DTYPES[2], n) for n in (1e3, 6e4)],
)
def test_huge_inputs_give_no_nan(form, norm, dtype):
    q, p, queue = (x.to(dtype) * norm for x in triple(20, 700, 16))
    leaf, temperature = q.requires_grad_(), torch.tensor(0.07, requires_grad=True)
    loss = queue_info_nce(leaf, p, queue, temperature, exclude=some_excluded(4, 700))
    loss.sum().backward()
    for number in (loss, leaf.grad, temperature.grad):
        assert not number.isnan().any()
        # A float16 gradient is at most 65,504; these are larger.
        assert number.isfinite().all() or number.dtype == torch.float16


def test_nan_in_a_query_is_not_hidden(form):
    q, p, queue = triple(20, 300, 16)
    q[3, 5] = math.nan
    assert queue_info_nce(q, p, queue, 0.2).isnan().nonzero().flatten().tolist() == [3]


class Recorder(TorchDispatchMode):
    """Record the operators called and the number of elements of the largest output."""

    def __init__(self):
        super().__init__()
        self.largest, self.names = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                # Bytes of the storage: an expanded view has no memory of its own.
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.itemsize)
        return out


@pytest.mark.parametrize("groups", [None, 8, 800])
def test_no_tensor_of_queries_times_queue(form, groups):
    m, k, d = 800, 8192, 32
    inputs = triple(m, k, d)
    # As many rows as queries are a mask of M x K by the caller's choice, but no more than that.
    exclude = None if groups is None else some_excluded(groups, k)
    with Recorder() as plain:
        run(reference, torch.float64, inputs, 0.2)
    assert plain.largest >= m * k  # the recorder detects such a tensor
    with Recorder() as recorder:
        run(queue_info_nce, torch.float32, inputs, 0.2, exclude)
    block = (
        0
        if form == "fused"
        else max(queue_attention._BLOCK_LOGITS, m * queue_attention._LEAST_BLOCK)
    )
    assert recorder.largest <= max(k * d, m * d, block, (groups or 0) * k)
    assert block < m * k
    assert (queue_attention._KERNELS["cpu"][0] in recorder.names) == (form == "fused")


def peak_bytes(function, file):
    """Return the peak memory while `function` runs, including that inside kernels."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        function()
    trace.export_chrome_trace(str(file))
    events = [e for e in json.loads(file.read_text())["traceEvents"] if e["name"] == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in events))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_copies_neither_mask_nor_keys_inside(tmp_path, same_threads, dtype):
    torch.set_num_threads(1)  # each thread has its own scratch memory
    groups, m, k, d = 16, 800, 8192, 64
    inputs = [x.to(dtype).requires_grad_(i == 0) for i, x in enumerate(triple(m, k, d))]
    exclude = some_excluded(groups, k)
    assert fused_available("cpu", dtype)  # its first call allocates

    def peak(function):
        work = lambda: function(*inputs, 0.2, exclude=exclude).sum().backward()  # noqa: E731
        return peak_bytes(work, tmp_path / "trace.json")

    assert peak(reference) > m * k * 8  # float64: the measurement detects logits
    # The mask (G, K) is in memory, hence the lower bound. One copy of the queue per group would be
    # 16 copies, one mask per query 800 masks; bfloat16 needs a packed queue and one row of masks.
    size = dtype.itemsize
    assert groups * k * size < peak(queue_info_nce) < 2.5 * k * d * 4


def test_fused_kernel_is_there_on_this_cpu(fresh_check):
    for dtype in DTYPES:
        assert fused_available("cpu", dtype)
        assert not fused_available("meta", dtype)
        assert fused_available("cuda", dtype) == torch.cuda.is_available()
    assert fused_available(torch.device("cpu"))
    assert not fused_available("cpu", torch.float64)


def test_the_operators_of_torch_take_and_return_what_the_code_relies_on():
    """On every machine, since a GPU is rarely available; the call uses these names as keywords."""
    (cpu,), (cudnn, efficient) = (
        [
            str(getattr(torch.ops.aten, name).default._schema)
            for name in queue_attention._KERNELS[kind]
        ]
        for kind in ("cpu", "cuda")
    )
    assert cpu == (
        "aten::_scaled_dot_product_flash_attention_for_cpu(Tensor query, Tensor key, Tensor value, "
        "float dropout_p=0., bool is_causal=False, *, Tensor? attn_mask=None, float? scale=None)"
        " -> (Tensor output, Tensor logsumexp)"
    )
    for name, schema in (("cudnn", cudnn), ("efficient", efficient)):
        assert schema.startswith(
            f"aten::_scaled_dot_product_{name}_attention(Tensor query, Tensor key, Tensor value, "
            f"Tensor? attn_bias, bool compute_log_sumexp, "
        )
        assert "*, float? scale=None) -> (Tensor output, Tensor log" in schema


class OnGpu(torch.Tensor):
    """A tensor on the CPU that claims to be on a GPU, so that the code takes the GPU's path."""

    device = torch.device("cuda")


class GpuFactories(TorchFunctionMode):
    """Make new tensors that are requested on a GPU such tensors."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if "device" not in kwargs or torch.device(kwargs["device"]).type != "cuda":
            return func(*args, **kwargs)
        return func(*args, **kwargs | {"device": "cpu"}).as_subclass(OnGpu)


@pytest.fixture(params=queue_attention._KERNELS["cuda"])
def gpu_calls(request, fresh_check, monkeypatch):
    """Record the types of the queries in each call of a GPU operator; float64 computes the result.

    torch's own operator on `meta` tensors checks the arguments and gives the shapes of the result.
    """
    real, calls = getattr(torch.ops.aten, request.param), []

    def meta(x):
        if not isinstance(x, torch.Tensor):
            return x
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")

    def operator(query, key, value, attn_bias, compute_log_sumexp, *rest, scale=None):
        arguments = query, key, value, attn_bias, compute_log_sumexp, *rest
        told, told_lse, *others = real(*map(meta, arguments), scale=scale)
        assert told.shape == query.shape
        logits = scale * query.double() @ key.double().transpose(-1, -2)
        if attn_bias is not None:
            assert attn_bias.dtype == query.dtype
            assert attn_bias.shape == logits.shape
            # The CUDA source raises "attn_bias is not correctly aligned" for each side longer than
            # 1.
            sides = zip(attn_bias.shape[:3], attn_bias.stride()[:3], strict=True)
            assert all(stride % 8 == 0 for length, stride in sides if length > 1)
            logits = logits + attn_bias.double()
        lse = torch.full(told_lse.shape, math.nan)  # one of them pads it to a multiple of 32
        assert "cudnn" in request.param or lse.shape[-1] % 32 == 0
        lse.flatten(1)[:, : query.shape[2]] = logits.logsumexp(-1).flatten(1)
        calls.append(query.dtype)
        return (logits.softmax(-1) @ value.double()).to(query.dtype), lse, *others

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.aten, "of_a_gpu", operator, raising=False)
    monkeypatch.setitem(queue_attention._KERNELS, "cuda", ("of_a_gpu",))
    monkeypatch.setattr(queue_attention, "_LEAST_ON_GPU", 1)
    with GpuFactories():
        yield calls


def on_gpu(*inputs):
    return [x.as_subclass(OnGpu) for x in inputs]


@pytest.mark.parametrize("groups", [None, 4, 40])
def test_the_way_to_the_gpus_operator_gives_the_float64_loss(gpu_calls, groups):
    assert all(fused_available("cuda", dtype, 16) for dtype in DTYPES)
    exclude = None
    if groups is not None:
        exclude = some_excluded(groups, 300)
        exclude[1] = True  # NaN from the softmax in float64; on a GPU any value
        exclude = exclude.as_subclass(OnGpu)
    gpu_calls.clear()
    assert_right(on_gpu(*triple(40, 300, 16)), 0.2, exclude)
    assert gpu_calls == [torch.float32]


def test_the_gpus_operator_gets_half_precision_and_only_lengths_that_it_takes(
    gpu_calls, monkeypatch
):
    inputs = triple(40, 300, 16)
    for dtype in DTYPES:
        assert fused_available("cuda", dtype, 16)
        gpu_calls.clear()
        loss = queue_info_nce(*on_gpu(inputs[0].to(dtype), *inputs[1:]), 0.2)
        assert gpu_calls == [dtype]
        assert loss.dtype == torch.float32
    gpu_calls.clear()
    assert_right(on_gpu(*triple(40, 300, 12)), 0.2)  # not a multiple of 8: the chunked form
    monkeypatch.setattr(queue_attention, "_LEAST_ON_GPU", 41)  # few queries: the same
    assert_right(on_gpu(*triple(40, 300, 16)), 0.2)
    assert gpu_calls == []


CHANGES = {
    "signature": None,
    "value": lambda out, lse: (out, lse + 1),
    "shape": lambda out, lse: (out, lse[..., 1:]),
    "dtype": lambda out, lse: (out, lse.double()),
    "number": lambda out, lse: (out, lse, lse),
}


def replace_kernel(monkeypatch, change):
    """Make the kernel return change(out, lse); with None, it rejects the arguments."""
    kernel = getattr(torch.ops.aten, queue_attention._KERNELS["cpu"][0])

    def replacement(*args, **kwargs):
        if change is None:
            raise TypeError("unexpected keyword argument")
        return change(*kernel(*args, **kwargs))

    monkeypatch.setattr(torch.ops.aten, "changed", replacement, raising=False)
    monkeypatch.setitem(queue_attention._KERNELS, "cpu", ("changed",))


@pytest.mark.parametrize("what", ["missing", *CHANGES])
def test_a_changed_kernel_is_noticed_and_the_loss_stays_right(fresh_check, monkeypatch, what):
    if what == "missing":
        monkeypatch.setitem(queue_attention._KERNELS, "cpu", ("no_such_operator",))
    else:
        replace_kernel(monkeypatch, CHANGES[what])
    assert not any(fused_available("cpu", dtype) for dtype in DTYPES)
    assert_right(triple(20, 700, 16), 0.2)


def test_nothing_is_read_from_fully_masked_rows(fresh_check, monkeypatch):
    def nan_in_the_last_group(out, lse):
        out, lse = out.clone(), lse.clone()
        out[2:], lse[2:] = math.nan, math.nan
        return out, lse

    replace_kernel(monkeypatch, nan_in_the_last_group)
    assert fused_available("cpu")  # the self-check has two groups
    exclude = torch.zeros(3, 700, dtype=torch.bool)
    exclude[2] = True
    assert_right(triple(12, 700, 16), 0.2, exclude)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(2, 3, 4)}, r"queries must be \(M, D\), got \(2, 3, 4\)"),
        ({"positives": torch.zeros(5, 4)}, r"positives must be \(6, 4\) .* got \(5, 4\)"),
        ({"queue": torch.zeros(9, 5)}, r"queue must be \(K, 4\) .*\(6, 4\), got \(9, 5\)"),
        ({"queue": torch.zeros(0, 4)}, r"queue must be .* got \(0, 4\)"),
        ({"temperature": 0.0}, r"temperature must be a finite number > 0, got 0.0"),
        ({"temperature": -1}, r"temperature .* got -1"),
        ({"temperature": math.nan}, r"temperature .* got nan"),
        ({"temperature": torch.ones(2)}, r"temperature must have 1 element, got 2"),
        ({"exclude": torch.zeros(2, 9)}, r"exclude must be boolean, got torch.float32"),
        ({"exclude": torch.zeros(2, 8).bool()}, r"exclude must be \(G, 9\) .* got \(2, 8\)"),
        ({"exclude": torch.zeros(4, 9).bool()}, r"exclude has 4 groups.* 6 queries"),
        ({"exclude": torch.zeros(0, 9).bool()}, r"exclude has 0 groups.* 6 queries"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = dict(zip(("queries", "positives", "queue"), triple(6, 9, 4), strict=True))
    with pytest.raises(ValueError, match=message) as error:
        queue_info_nce(**arguments | {"temperature": 0.2} | change)
    assert "\n" not in str(error.value)
