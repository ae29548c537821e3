"""The loss against plain float64 logits; its memory; the private operator it stands on."""

import json
import math
from itertools import accumulate

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from densevit.contrast import info_nce
from densevit.contrast.info_nce import fused_available, queue_info_nce

KERNEL = info_nce._KERNEL


@pytest.fixture(params=["fused", "chunked"])
def form(request, monkeypatch):
    if request.param == "chunked":
        monkeypatch.setattr(info_nce, "fused_available", lambda device: False)
    return request.param


@pytest.fixture
def fresh_check():
    """Forget the cached answer of the self-check, before and after."""
    info_nce._fused_works.cache_clear()
    yield
    info_nce._fused_works.cache_clear()


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def unit(*shape, seed, dtype=torch.float32):
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(noise, dim=-1).to(dtype)


def reference(queries, positives, queue, temperature, exclude=None):
    """Plain cross-entropy over the full logits in float64, with the positive in column 0."""
    q, p, k = queries.double(), positives.double(), queue.double()
    logits = torch.cat([(q * p).sum(1, keepdim=True), q @ k.T], dim=1) / temperature
    if exclude is not None:
        rows = exclude.repeat_interleave(len(q) // len(exclude), dim=0)
        rows = torch.cat([torch.zeros(len(q), 1, dtype=torch.bool), rows], dim=1)
        logits = logits.masked_fill(rows, -math.inf)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64), reduction="none")


def relative_error(got, wanted):
    return ((got.double() - wanted).abs().max() / wanted.abs().max()).item()


def both(queries, positives, queue, temperature, exclude=None):
    """(loss, gradients) of the function under test in float32 and of the float64 reference.

    The losses are weighted, so that every query has another upstream gradient.
    """
    weights = torch.linspace(0.5, 2.0, len(queries), dtype=torch.float64)
    results = []
    for function, dtype in ((queue_info_nce, torch.float32), (reference, torch.float64)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (queries, positives)]
        leaves.append(torch.tensor(temperature, dtype=dtype, requires_grad=True))
        loss = function(leaves[0], leaves[1], queue, leaves[2], exclude=exclude)
        (loss * weights.to(dtype)).sum().backward()
        results.append((loss.detach(), [leaf.grad for leaf in leaves]))
    return results


def some_excluded(groups, size, seed):
    return torch.rand(groups, size, generator=torch.Generator().manual_seed(seed)) < 0.3


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize(("m", "k", "d"), [(1, 1, 2), (40, 513, 32), (60, 1500, 17), (7, 3, 128)])
def test_loss_and_gradients_equal_the_float64_reference(form, m, k, d, temperature):
    got, wanted = both(unit(m, d, seed=0), unit(m, d, seed=1), unit(k, d, seed=2), temperature)
    assert got[0].shape == (m,)
    assert got[0].dtype == torch.float32
    assert relative_error(got[0], wanted[0]) < 1e-5
    for g, w in zip(got[1], wanted[1], strict=True):
        assert relative_error(g, w) < 1e-5


@pytest.mark.parametrize("groups", [1, 4, 60])
def test_excluded_entries_are_left_out_of_their_group_only(form, groups):
    exclude = some_excluded(groups, 1500, seed=3)
    inputs = unit(60, 24, seed=0), unit(60, 24, seed=1), unit(1500, 24, seed=2)
    got, wanted = both(*inputs, 0.2, exclude)
    assert relative_error(got[0], wanted[0]) < 1e-5
    for g, w in zip(got[1], wanted[1], strict=True):
        assert relative_error(g, w) < 1e-5
    # The mask matters in this case at all: without it the loss is another one.
    assert relative_error(queue_info_nce(*inputs, 0.2), wanted[0]) > 1e-3


@pytest.mark.parametrize("span", [(0, 600), (0, 1499), (1, 1500), (512, 1500), (900, 1500)])
def test_whole_blocks_of_the_queue_may_be_excluded(form, span):
    exclude = torch.zeros(2, 1500, dtype=torch.bool)
    exclude[0, span[0] : span[1]] = True
    got, wanted = both(
        unit(20, 16, seed=0), unit(20, 16, seed=1), unit(1500, 16, seed=2), 0.1, exclude
    )
    assert relative_error(got[0], wanted[0]) < 1e-5
    for g, w in zip(got[1], wanted[1], strict=True):
        assert relative_error(g, w) < 1e-5


def test_group_without_negatives_has_loss_zero_and_finite_gradients(form):
    exclude = torch.zeros(3, 700, dtype=torch.bool)
    exclude[1] = True
    got, wanted = both(
        unit(12, 16, seed=0), unit(12, 16, seed=1), unit(700, 16, seed=2), 0.2, exclude
    )
    assert (got[0][4:8] == 0).all()
    assert relative_error(got[0], wanted[0]) < 1e-5
    for g, w in zip(got[1], wanted[1], strict=True):
        assert relative_error(g, w) < 1e-5
    assert (got[1][0][4:8] == 0).all()

    exclude[:] = True
    got, _ = both(unit(12, 16, seed=0), unit(12, 16, seed=1), unit(700, 16, seed=2), 0.2, exclude)
    assert (got[0] == 0).all()
    assert all((g == 0).all() for g in got[1])


def test_loss_keeps_its_digits_where_the_positive_dominates(form):
    q = unit(10, 64, seed=0)
    got, wanted = both(q, q, -q[:5] + 0.1 * unit(5, 64, seed=1), 0.1)
    assert wanted[0].min() < 1e-3
    torch.testing.assert_close(got[0].double(), wanted[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("groups", [None, 3])
def test_no_queries_give_no_losses(form, groups):
    # The kernel itself ends the process with a division by zero here.
    none = torch.zeros(0, 16, requires_grad=True)
    exclude = None if groups is None else torch.zeros(groups, 100, dtype=torch.bool)
    loss = queue_info_nce(none, none, unit(100, 16, seed=2), 0.2, exclude=exclude)
    loss.sum().backward()
    assert loss.shape == (0,)


def test_bfloat16_inputs_are_computed_in_float32(form):
    q, p, k = unit(40, 128, seed=0), unit(40, 128, seed=1), unit(1500, 128, seed=2)
    rounded = [x.bfloat16() for x in (q, p, k)]
    leaf = rounded[0].clone().requires_grad_()
    loss = queue_info_nce(leaf, rounded[1], rounded[2], 0.2)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    # Nothing is lost beyond the rounding of the inputs themselves ...
    exact = [x.double() for x in rounded]
    exact[0].requires_grad_()
    wanted = reference(*exact, 0.2)
    wanted.sum().backward()
    assert relative_error(loss, wanted.detach()) < 1e-5
    assert leaf.grad.dtype == torch.bfloat16
    assert relative_error(leaf.grad, exact[0].grad) < 2**-8
    # ... which moves a product of unit vectors by at most 2·2⁻⁹ + 2⁻¹⁸, and the loss by twice that.
    bound = 2 * (2**-8 + 2**-18) / 0.2
    assert (loss.double() - reference(q, p, k, 0.2)).abs().max() < bound


def test_autocast_changes_nothing(form):
    inputs = unit(30, 32, seed=0), unit(30, 32, seed=1), unit(700, 32, seed=2)
    results = []
    for enabled in (False, True):
        leaf = inputs[0].clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = queue_info_nce(leaf, inputs[1], inputs[2], torch.tensor(0.2))
            loss.sum().backward()
        results.append((loss.detach(), leaf.grad))
    assert results[1][0].dtype == torch.float32
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_loss_of_a_fresh_model_is_near_log_of_queue_size_plus_one(form):
    m, k, d, temperature = 4096, 4096, 128, 0.2
    loss = queue_info_nce(unit(m, d, seed=0), unit(m, d, seed=1), unit(k, d, seed=2), temperature)
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
    q, queue = unit(20, 16, seed=0).requires_grad_(), unit(300, 16, seed=2).requires_grad_()
    loss = queue_info_nce(q, unit(20, 16, seed=1), queue, 0.2)
    (wanted,) = torch.autograd.grad(loss.sum(), q, retain_graph=True)
    with torch.no_grad():
        queue.zero_()
    loss.sum().backward()
    assert queue.grad is None
    assert torch.equal(q.grad, wanted)


def test_tensor_and_float_temperature_agree(form):
    inputs = unit(20, 16, seed=0), unit(20, 16, seed=1), unit(300, 16, seed=2)
    temperature = torch.full((1,), 0.3, requires_grad=True)
    loss = queue_info_nce(*inputs, temperature)
    assert loss.shape == (20,)
    assert torch.equal(loss, queue_info_nce(*inputs, 0.3))
    loss.sum().backward()
    assert temperature.grad.shape == (1,)


@pytest.mark.parametrize("norm", [1e3, 1e8, 1e16])
def test_huge_inputs_give_no_nan(form, norm):
    leaf = (unit(20, 16, seed=0) * norm).requires_grad_()
    temperature = torch.tensor(0.07, requires_grad=True)
    positives, queue = unit(20, 16, seed=1) * norm, unit(700, 16, seed=2) * norm
    exclude = some_excluded(4, 700, seed=3)
    loss = queue_info_nce(leaf, positives, queue, temperature, exclude=exclude)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert leaf.grad.isfinite().all()
    assert temperature.grad.isfinite()


def test_nan_in_a_query_is_not_hidden(form):
    q = unit(20, 16, seed=0)
    q[3, 5] = math.nan
    loss = queue_info_nce(q, unit(20, 16, seed=1), unit(300, 16, seed=2), 0.2)
    assert loss.isnan().nonzero().flatten().tolist() == [3]


class Recorder(TorchDispatchMode):
    """Remembers the operators called and the number of elements that the largest output holds."""

    def __init__(self):
        super().__init__()
        self.largest, self.names = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                # Bytes behind the tensor: an expanded view is no memory.
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.itemsize)
        return out


@pytest.mark.parametrize("groups", [None, 8])
def test_no_tensor_of_queries_times_queue(form, groups):
    m, k, d = 800, 8192, 32
    inputs = unit(m, d, seed=0).requires_grad_(), unit(m, d, seed=1), unit(k, d, seed=2)
    exclude = None if groups is None else some_excluded(groups, k, seed=3)
    with Recorder() as plain:
        reference(*inputs, 0.2).sum().backward()
    assert plain.largest >= m * k  # the recorder sees such a tensor where there is one
    with Recorder() as recorder:
        queue_info_nce(*inputs, 0.2, exclude=exclude).sum().backward()
    allowed = max(k * d, m * info_nce._BLOCK if form == "chunked" else m * d)
    assert recorder.largest <= allowed < m * k / 10
    assert (KERNEL in recorder.names) == (form == "fused")


def peak_bytes(function, file):
    """Most memory held at once while function runs, with what kernels take inside."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        function()
    trace.export_chrome_trace(str(file))
    events = [e for e in json.loads(file.read_text())["traceEvents"] if e["name"] == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in events))


def test_the_kernel_copies_neither_mask_nor_keys_inside(tmp_path, one_thread):
    # One thread, since each has its own scratch memory.
    groups, m, k, d = 8, 800, 8192, 64
    inputs = unit(m, d, seed=0).requires_grad_(), unit(m, d, seed=1), unit(k, d, seed=2)
    exclude = some_excluded(groups, k, seed=3)
    assert fused_available("cpu")  # its first call allocates

    def run(function):
        return peak_bytes(lambda: function(*inputs, 0.2, exclude=exclude).sum().backward(), file)

    file = tmp_path / "trace.json"
    assert run(reference) > m * k * 8  # float64: the measure sees the logits where they are
    # The mask (G, K) is held, hence the lower bound. One copy of the queue a group would be 16 MiB,
    # one of the mask a query 25 MiB.
    assert groups * k * 4 < run(queue_info_nce) < 2 * k * d * 4


def test_fused_kernel_is_there_on_this_cpu(fresh_check):
    assert hasattr(torch.ops.aten, KERNEL)
    assert fused_available("cpu")
    assert fused_available(torch.device("cpu"))
    assert not fused_available("cuda")
    assert not fused_available("meta")


CHANGES = {
    "signature": None,
    "value": lambda out, lse: (out, lse + 1),
    "shape": lambda out, lse: (out, lse.transpose(0, 1)[None]),
    "dtype": lambda out, lse: (out, lse.double()),
    "number": lambda out, lse: (out, lse, lse),
}


def replace_kernel(monkeypatch, change):
    """Let the kernel return change(out, lse); with None, refuse the arguments."""
    kernel = getattr(torch.ops.aten, KERNEL)

    def replacement(*args, **kwargs):
        if change is None:
            raise TypeError("unexpected keyword argument")
        return change(*kernel(*args, **kwargs))

    monkeypatch.setattr(torch.ops.aten, KERNEL, replacement)


@pytest.mark.parametrize("what", ["missing", *CHANGES])
def test_a_changed_kernel_is_noticed_and_the_loss_stays_right(fresh_check, monkeypatch, what):
    if what == "missing":
        monkeypatch.setattr(info_nce, "_KERNEL", "no_such_operator")
    else:
        replace_kernel(monkeypatch, CHANGES[what])
    assert not fused_available("cpu")
    got, wanted = both(unit(20, 16, seed=0), unit(20, 16, seed=1), unit(700, 16, seed=2), 0.2)
    assert relative_error(got[0], wanted[0]) < 1e-5


def test_nothing_is_read_from_fully_masked_rows(fresh_check, monkeypatch):
    def nan_in_the_last_group(out, lse):
        out, lse = out.clone(), lse.clone()
        out[2:], lse[2:] = math.nan, math.nan
        return out, lse

    replace_kernel(monkeypatch, nan_in_the_last_group)
    assert fused_available("cpu")  # the self-check has two groups
    exclude = torch.zeros(3, 700, dtype=torch.bool)
    exclude[2] = True
    got, wanted = both(
        unit(12, 16, seed=0), unit(12, 16, seed=1), unit(700, 16, seed=2), 0.2, exclude
    )
    assert relative_error(got[0], wanted[0]) < 1e-5
    for g, w in zip(got[1], wanted[1], strict=True):
        assert relative_error(g, w) < 1e-5


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
    arguments = {
        "queries": torch.zeros(6, 4),
        "positives": torch.zeros(6, 4),
        "queue": torch.zeros(9, 4),
        "temperature": 0.2,
        "exclude": None,
    } | change
    with pytest.raises(ValueError, match=message) as error:
        queue_info_nce(**arguments)
    assert "\n" not in str(error.value)
