import copy
import io
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyfast import prune
from pyfast.prune import GradualPruner


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))


class Run:
    """A training run whose every part can be saved and taken up again."""

    def __init__(self, **options):
        self.model = network()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        self.pruner = GradualPruner(self.model, 0.9, **({"start": 2, "end": 14, "every": 3, "min_keep": 6} | options))

    def train(self, steps):
        for t in steps:
            x = torch.randn(8, 12, generator=torch.Generator().manual_seed(t))
            self.optimizer.zero_grad()
            (self.model(x) - x[:, :3]).square().mean().backward()
            self.optimizer.step()
            self.pruner.step()
        return self

    def save(self):
        file = io.BytesIO()
        parts = (self.model, self.optimizer, self.pruner)
        torch.save([part.state_dict() for part in parts], file)
        file.seek(0)
        return file

    def load(self, file):
        for part, state in zip((self.model, self.optimizer, self.pruner), torch.load(file), strict=True):
            part.load_state_dict(state)
        return self

    @property
    def bits(self):
        return [w.view(torch.int32) for w in self.model.state_dict().values()]


def share(progress, schedule):
    return {"cubic": 1 - (1 - progress) ** 3, "linear": progress}[schedule]


@pytest.mark.parametrize("schedule", ["cubic", "linear"])
@pytest.mark.parametrize("initial", [0.0, 0.3, 20])
def test_the_schedule_is_met_to_the_weight(schedule, initial):
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    pruner = GradualPruner(w, 0.95, start=3, end=14, every=4, schedule=schedule, initial=initial)
    first = initial if isinstance(initial, int) else round(initial * 1000)
    now = 0
    assert (pruner.mask, pruner.result, pruner.sparsity) == (None, None, 0.0)
    for t in range(20):
        assert pruner.steps == t
        assert pruner.done == (t > 14)
        pruner.step()
        if t in (3, 7, 11, 14):
            now = round(first + (950 - first) * share((t - 3) / 11, schedule))
        assert pruner.sparsity == now / 1000
        assert int((w == 0).sum()) == now
    assert now == 950
    assert pruner.result.pruned == pruner.mask.size - pruner.mask.kept == 950


def test_one_shot_prunes_once_and_flushes_ever_after():
    w = torch.arange(1.0, 11)
    pruner = GradualPruner(w, 5, start=1, schedule="one_shot")
    pruner.step()
    assert w.all()
    pruner.step()
    assert w.tolist() == [0] * 5 + [6, 7, 8, 9, 10]
    assert pruner.done
    for _ in range(3):
        w += 100
        pruner.step()
        assert not w[:5].any()
    assert w[5:].tolist() == [306, 307, 308, 309, 310]


def test_a_function_as_schedule():
    w = torch.randn(100, generator=torch.Generator().manual_seed(0))
    pruner = GradualPruner(w, 0.8, end=4, schedule=lambda progress: progress**2)
    counts = []
    for _ in range(6):
        pruner.step()
        counts.append(int((w == 0).sum()))
    assert counts == [0, 5, 20, 45, 80, 80]
    wrong = GradualPruner(torch.ones(4), 0.8, end=4, schedule=lambda progress: 2.0)
    with pytest.raises(ValueError, match=r"schedule must return a share between 0 and 1, got 2\.0 at progress 0\.0"):
        wrong.step()
    assert wrong.steps == 0


def test_a_shrinking_schedule_needs_regrow():
    def hump(progress):
        return 1 - progress

    counts = {}
    for regrow in (False, True):
        w = torch.arange(1.0, 11)
        pruner = GradualPruner(w, 8, end=3, schedule=hump, regrow=regrow)
        counts[regrow] = []
        for _ in range(3):
            w += 1
            pruner.step()
            counts[regrow].append(int((w == 0).sum()))
    assert counts == {False: [8, 8, 8], True: [8, 5, 3]}


def subset(one, other):
    return (one & other) == one


@pytest.mark.parametrize("ties", ["first", "keep_all", "prune_all"])
@given(
    st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 8), st.sampled_from([torch.float32, torch.float8_e4m3fn])
)
@settings(deadline=None, max_examples=60)
def test_what_is_pruned_stays_pruned(ties, seed, layers, sigma, dtype):
    """On weights with many ties and zeros, which an optimizer moves about at will, pruned ones included."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 30, (layers,), generator=g).tolist()
    tensors = [torch.randint(-2, 3, (n,), generator=g).to(dtype) for n in sizes]
    amount = int(torch.randint(0, sum(sizes) + 1, (1,), generator=g))
    feasible = sum(min(sigma, n) for n in sizes) <= sum(sizes) - amount
    pruner = GradualPruner(tensors, amount, end=5, min_keep=sigma if feasible else 0, ties=ties)
    last = None
    for t in range(8):
        for w in tensors:
            w.copy_(torch.randint(-2, 3, w.shape, generator=g).to(dtype))
        before = [
            w.float().where(torch.ones_like(m) if last is None else last.to_bool()[str(i)], 0)
            for i, (w, m) in enumerate(zip(tensors, [torch.ones(n).bool() for n in sizes], strict=True))
        ]
        pruner.step()
        masks = pruner.mask.to_bool()
        for i, w in enumerate(tensors):
            assert torch.equal(w.float(), before[i].where(masks[str(i)], 0))
        assert [layer.kept for layer in pruner.result.layers] == [int(m.sum()) for m in masks.values()]
        assert pruner.result.kept == pruner.mask.kept
        if feasible:
            assert all(layer.kept >= min(sigma, layer.size) for layer in pruner.result.layers)
        if ties == "first" and t >= 5:
            assert pruner.result.pruned == amount
        if last is not None:
            assert subset(pruner.mask, last)
        last = pruner.mask


def test_kept_zeros_are_ranked_among_themselves():
    w = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0, 3.0])
    pruner = GradualPruner(w, 4, end=2, schedule="linear", initial=2)
    pruner.step()
    assert pruner.mask.to_bool()["0"].tolist() == [True, True, True, False, False, True]
    w[0] = 0.0  # a kept weight dies; the pruned ones tie with it
    w[3] = 9.0  # and one of them was moved by the optimizer
    pruner.step()
    assert pruner.mask.to_bool()["0"].tolist() == [True, True, False, False, False, True]
    assert w.tolist() == [0, 2, 0, 0, 0, 3]


def test_regrown_weights_return():
    for regrow in (False, True):
        w = torch.tensor([1.0, 2.0, 3.0, 4.0])
        pruner = GradualPruner(w, 2, end=2, initial=2, every=2, regrow=regrow)
        pruner.step()
        assert w.tolist() == [0, 0, 3, 4]
        w[0] = 9.0
        pruner.step()  # no new mask at this step
        assert w.tolist() == [0, 0, 3, 4]
        w[0] = 9.0
        pruner.step()
        assert w.tolist() == ([9, 0, 0, 4] if regrow else [0, 0, 3, 4])


@pytest.mark.parametrize("options", [{}, {"regrow": True}, {"ties": "keep_all", "schedule": "linear"}])
@pytest.mark.parametrize("at", [0, 1, 3, 5, 8, 14, 17])
def test_an_interrupted_run_goes_on_with_the_same_bits(options, at):
    whole = Run(**options).train(range(20))
    begun = Run(**options).train(range(at))
    again = Run(**options)
    again.load(begun.save()).train(range(at, 20))
    assert all(map(torch.equal, again.bits, whole.bits))
    assert again.pruner.mask == whole.pruner.mask
    assert str(again.pruner.result) == str(whole.pruner.result)
    assert again.pruner.done


def test_a_loaded_state_is_a_copy_and_reports():
    run = Run().train(range(6))
    other = Run()
    state = run.pruner.state_dict()
    other.pruner.load_state_dict(state)
    state["bits"].zero_()
    assert other.pruner.mask == run.pruner.mask
    assert str(other.pruner.result) == str(run.pruner.result)


def test_a_foreign_state_is_refused():
    state = Run().train(range(6)).pruner.state_dict()
    for options, key in (({"end": 20}, "end"), ({"min_keep": 7}, "minimum"), ({"regrow": True}, "regrow")):
        other = Run(**options).pruner
        with pytest.raises(ValueError, match=rf"state must come from a pruner with the same {key}, "):
            other.load_state_dict(state)
        assert other.steps == 0
        assert other.mask is None
    with pytest.raises(ValueError, match="with the same"):
        GradualPruner(nn.Linear(1992, 1), 0.9, start=2, end=14, every=3).load_state_dict(state)


def test_minima_hold_all_the_way():
    run = Run(min_keep=12)
    for t in range(20):
        run.train([t])
        if run.pruner.result:
            assert all(layer.kept >= 12 for layer in run.pruner.result.layers)
    assert [layer.kept for layer in run.pruner.result.layers] == [12, 12]


def test_nan_stops_the_step_and_keeps_the_schedule():
    w = torch.arange(1.0, 11)
    pruner = GradualPruner(w, 5, end=2, initial=2)
    pruner.step()
    w[9] = torch.nan
    with pytest.raises(ValueError, match=r"targets must not hold NaN, got 1 in '0', the first at \(9,\)"):
        pruner.step()
    assert pruner.steps == 1
    w[9] = 10.0
    pruner.step()
    assert pruner.steps == 2
    assert pruner.sparsity == 0.5


def test_wrapped_models_train():
    model = network()
    compiled = torch.compile(model, backend="eager")
    pruner = GradualPruner(compiled, 0.5, end=3)
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    for t in range(5):
        optimizer.zero_grad()
        compiled(torch.randn(4, 12, generator=torch.Generator().manual_seed(t))).square().mean().backward()
        optimizer.step()
        pruner.step()
    assert pruner.mask.names == ("0.weight", "2.weight")
    assert sum(int((model[i].weight == 0).sum()) for i in (0, 2)) == pruner.result.pruned == pruner.result.amount


def test_dtype_and_data_may_move_under_the_parameters():
    model = network()
    pruner = GradualPruner(model, 0.5, end=0)
    pruner.step()
    model.to(torch.bfloat16)
    with torch.no_grad():
        for p in model.parameters():
            p += 1
    pruner.step()
    assert sum(int((model[i].weight == 0).sum()) for i in (0, 2)) == pruner.result.pruned


def test_copies_go_their_own_way():
    run = Run().train(range(6))
    twin = copy.deepcopy(run)
    run.train(range(6, 20))
    twin.train(range(6, 20))
    assert all(map(torch.equal, run.bits, twin.bits))


BAD = [
    ({}, TypeError, r"end must be a number of steps, got None"),
    ({"end": True}, TypeError, r"end must be a number of steps, got True"),
    ({"end": 1.5}, TypeError, r"end must be a number of steps, got 1\.5"),
    ({"end": 3, "start": -1}, ValueError, r"start must be at least 0, got -1"),
    ({"end": 3, "start": 4}, ValueError, r"end must not be before start \(4\), got 3"),
    ({"end": 3, "every": 0}, ValueError, r"every must be at least 1, got 0"),
    ({"end": 3, "schedule": "one_shot"}, ValueError, r"end must be start for a one_shot schedule, got 3"),
    (
        {"end": 3, "schedule": "quartic"},
        ValueError,
        r"schedule must be a function or one of cubic, linear, one_shot, got",
    ),
    ({"end": 3, "initial": 0.95}, ValueError, r"initial must not prune more than amount \(9 weights\), got 10"),
    ({"end": 3, "initial": 1.5}, ValueError, r"initial must be between 0 and 1 as a float, got 1\.5"),
    ({"end": 3, "min_keep": 2}, ValueError, r"min_keep must leave enough weights to prune, .* for every layer 1"),
    ({"end": 3, "ties": "none"}, ValueError, r"ties must be one of"),
    ({"end": 3, "nan": "none"}, ValueError, r"nan must be one of"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message):
        GradualPruner(torch.ones(10), 0.9, **options)


def test_a_pruner_may_be_fed_numpy_and_generators():
    model = network()
    pruner = GradualPruner(model.parameters(), 10, end=torch.tensor([2]).numpy()[0])
    for _ in itertools.repeat(None, 3):
        pruner.step()
    assert pruner.result.pruned == 10
    assert prune.global_magnitude_mask(model.parameters(), 10).mask == pruner.mask


def test_a_changed_shape_is_refused():
    model = torch.nn.Linear(10, 10)
    pruner = prune.GradualPruner(model, 0.5, end=4)
    pruner.step()
    model.weight.data = torch.ones(400, 400)
    with pytest.raises(RuntimeError, match=r"targets must keep their shapes, got \(400, 400\) for 'weight'"):
        pruner.step()


def test_pickles_and_prints():
    pruner = prune.GradualPruner(torch.nn.Linear(10, 10), 0.5, end=4, every=2)
    assert repr(pruner) == "GradualPruner(50 of 100 weights, from step 0 to 4, every 2, cubic; step 0)"
    pruner.step()
    again = pickle.loads(pickle.dumps(pruner))
    assert again.mask == pruner.mask


def test_a_state_without_its_parts_is_refused():
    with pytest.raises(ValueError, match="state must come from state_dict"):
        prune.GradualPruner(torch.nn.Linear(10, 10), 0.5, end=4).load_state_dict({})
