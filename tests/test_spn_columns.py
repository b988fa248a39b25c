"""What goes in comes out, bad values are named, priors and base measures follow formulas, trees are Chow-Liu's."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast.spn import Categorical, Columns, Structure, _rows, chow_liu, hclt, tree, unique_rows
from pyfast.spn import _chow_liu as information

nan, inf = math.nan, math.inf
fit = Columns.fit_encoding


def kinds(columns):
    return [columns._kind(j) for j in range(len(columns))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_go_round(dtype):
    g = torch.Generator().manual_seed(1)
    X = torch.stack([
        torch.randint(0, 2, (50,), generator=g).double(),
        torch.randint(0, 5, (50,), generator=g).double() * 3 - 7,
        torch.randn(50, generator=g).double() * 1e3 + 1e5,
        torch.poisson(torch.full((50,), 30.0), generator=g).double(),
        torch.rand(50, generator=g).double() * 1e-6,
    ], 1)  # fmt: skip
    X[torch.rand(X.shape, generator=g) < 0.2] = nan
    columns = fit(X, ["bernoulli", "categorical", "gaussian", "poisson", "exponential"])
    rows = columns.encode(X, dtype, training=True)
    assert rows.dtype == dtype
    assert rows.is_contiguous()
    assert torch.equal(rows.isnan(), X.isnan())
    back = columns.decode(rows)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(back[:, [0, 1, 3]], X[:, [0, 1, 3]], rtol=0, atol=0, equal_nan=True)
    bound = eps * columns.scale[[2, 4]] * rows[:, [2, 4]].double().abs().nan_to_num(0).amax(0)
    error = (back - X)[:, [2, 4]].abs().nan_to_num(0).amax(0)
    assert (error <= bound + 1e-15 * X[:, [2, 4]].nan_to_num(0).abs().amax(0)).all()
    x = columns.encode(X, torch.float64)
    assert abs(x[:, 2].nanmean()) < 1e-9
    assert x[:, 2][~x[:, 2].isnan()].var(correction=0) == pytest.approx(1, abs=1e-9)
    assert x[:, 4].nanmean() == pytest.approx(1, abs=1e-12)
    assert columns.family.tolist() == [0, 0, 1, 2, 3]
    assert columns.width.tolist() == [2, 5, 4, 4, 4]


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300, 1.7e308])
@pytest.mark.parametrize("kind", ["gaussian", "exponential"])
def test_any_magnitude(kind, scale):
    x = np.array([[1.0], [0.25], [0.5], [0.0]]) * scale
    columns = fit(x, kind)
    rows = columns.encode(x, torch.float64)
    assert rows.isfinite().all()
    mean = 1.75 / 4
    shift, spread = (mean, math.sqrt((1 + 0.0625 + 0.25) / 4 - mean**2)) if kind == "gaussian" else (0, mean)
    np.testing.assert_allclose(rows[:, 0].numpy(), (x[:, 0] / scale - shift) / spread, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(columns.decode(rows), x, rtol=1e-12, atol=1e-12 * scale)


@given(st.lists(st.floats(allow_infinity=False, width=32), min_size=0, max_size=20))
@settings(deadline=None)
def test_quanta_count_all_that_was_fitted(values):
    x = np.array(values, np.float64).reshape(-1, 1)
    for kind, y in (("gaussian", x), ("exponential", np.abs(x))):
        columns = fit(y, kind)
        rows = columns.encode(y, training=True)
        quantum = columns.quantum.item()
        assert math.frexp(quantum)[0] == 0.5  # a power of two
        q = (rows.double() * quantum).nan_to_num(0)
        assert q.abs().max() < 2**30 if len(x) else True
        assert torch.equal(rows.isnan().flatten(), torch.from_numpy(np.isnan(x)).flatten())


def test_constant_columns():
    for value in (0.0, 5.0, 1e9 / 3, -1e-200):
        x = np.full((7, 1), value)
        columns = fit(x, "gaussian")
        assert columns.encode(x).abs().max() < 1e-6
        assert columns.prior()[0].isfinite().all()
    columns = fit(np.zeros((3, 1)), "exponential")
    assert columns.scale.item() == 1
    assert (columns.prior()[0][:2] > 0).all()


@pytest.mark.parametrize(
    "kind", ["bernoulli", "categorical", Categorical(3), "gaussian", "poisson", "exponential", "auto"]
)
@pytest.mark.parametrize("x", [np.empty((0, 2)), np.full((4, 2), nan), torch.empty(0, 2), torch.full((1, 2), nan)])
def test_nothing_known(kind, x):
    columns = fit(x, kind)
    rows = columns.encode(x)
    assert rows.shape == x.shape
    assert rows.isnan().all()
    prior, first = columns.prior()
    assert first.tolist() == [0, columns.width[0].item()]
    assert prior.isfinite().all()
    assert columns.log_base(rows).eq(0).all()
    assert columns.decode(rows).shape == x.shape


def test_auto():
    n = 40
    frame = pandas.DataFrame({
        "bits": [0, 1] * 20,
        "flag": [True, False] * 20,
        "few": list(range(4)) * 10,
        "many": list(range(40)),
        "negative": list(range(-20, 20)),
        "large": list(range(1000, 1040)),
        "real": np.linspace(0, 1, n),
        "text": ["b", "a", None, "c"] * 10,
        "declared": pandas.Categorical(["x", "y"] * 20, categories=["z", "y", "x"]),
        "nullable": pandas.array([1, None] * 20, dtype="Int64"),
        "yes": pandas.array([True, None] * 20, dtype="boolean"),
    })  # fmt: skip
    before = frame.copy()
    columns = fit(frame)
    assert kinds(columns) == [
        "bernoulli", "bernoulli", "categorical", "poisson", "gaussian", "gaussian", "gaussian", "categorical",
        "categorical", "bernoulli", "bernoulli",
    ]  # fmt: skip
    assert columns.categories[7] == ("a", "b", "c")
    assert columns.categories[8] == ("z", "y", "x")
    rows = columns.encode(frame, torch.float64)
    assert rows[:4, 7].nan_to_num(9).tolist() == [1, 0, 9, 2]
    assert rows[:2, 8].tolist() == [2, 1]
    assert rows[:2, 9].nan_to_num(9).tolist() == [1, 9]
    back = columns.decode(rows)
    assert list(back.columns) == list(frame.columns)
    for name in frame.columns:
        assert (back[name].isna() == frame[name].isna()).all()
        seen = ~frame[name].isna()
        if name in ("negative", "large", "real"):
            np.testing.assert_allclose(back[name], frame[name], rtol=1e-12, atol=1e-12)
        else:
            assert back[name][seen].tolist() == frame[name][seen].tolist()
    assert [str(t) for t in back.dtypes[:4]] == [str(t) for t in frame.dtypes[:4]]
    assert back.dtypes["negative"] == np.float64  # what is Gaussian need not be whole
    assert [str(t) for t in back.dtypes[9:]] == ["Int64", "boolean"]
    pandas.testing.assert_frame_equal(frame, before)
    with pytest.raises(ValueError, match="at row 3, column 'text'"):
        columns.encode(frame.assign(text=["a", "a", "a", "new"] * 10))
    with pytest.raises(ValueError, match="must have the columns"):
        columns.encode(frame[frame.columns[::-1]])
    with pytest.raises(TypeError, match=r"datetime64.* in column 'when'"):
        fit(frame.assign(when=pandas.Timestamp("2020-01-01")))
    assert Columns.from_state_dict(columns.state_dict()) == columns


@pytest.mark.parametrize(
    ("x", "kind", "error", "message"),
    [
        ([[0.0, 1.0], [0.0, inf]], "auto", ValueError, r"finite, or NaN where missing, got inf at \[1, 1\]"),
        ([[0.0], [-inf]], "gaussian", ValueError, r"got -inf at \[1, 0\]"),
        ([[0], [2]], "bernoulli", ValueError, r"0 or 1 in this column, got 2.0 at \[1, 0\]"),
        ([[0], [0.5]], "bernoulli", ValueError, r"got 0.5 at \[1, 0\]"),
        (
            [[0], [3]],
            Categorical(3),
            ValueError,
            r"one of 3 categories, 0.0, 1.0, 2.0, in this column, got 3.0 at \[1, 0\]",
        ),
        ([[-1]], Categorical(3), ValueError, r"got -1.0 at \[0, 0\]"),
        ([[1], [-1]], "poisson", ValueError, r"integers in \[0, 2\^24\) in a poisson column, got -1.0 at \[1, 0\]"),
        ([[1.5]], "poisson", ValueError, "got 1.5"),
        ([[2**24]], "poisson", ValueError, "got 16777216"),
        ([[0.0], [-1e-9]], "exponential", ValueError, "values from 0 on in an exponential column, got -1e-09"),
        ([["a"], ["b"]], "gaussian", TypeError, "numbers in a gaussian column, got 'a'"),
        ([[1, "a"], ["b", 2]], "auto", TypeError, r"strings in this column, got int at \[0, 0\]"),
        ([[1], [[2]]], "auto", ValueError, "rows of equal length"),
        (np.array([[1], [{}]], object), "auto", TypeError, r"numbers or strings in this column, got dict at \[1, 0\]"),
        (np.array([[1j]]), "auto", TypeError, "numbers or strings, got complex128"),
        (np.array([["2020-01-01"]], "M8[D]"), "auto", TypeError, "numbers or strings"),
        (torch.tensor([[1j]]), "auto", TypeError, "real numbers"),
        (np.array([[2**60]]), "auto", ValueError, r"integers up to 2\^53, got 1152921504606846976 at \[0, 0\]"),
        (np.zeros(3), "auto", ValueError, r"two dimensions, got shape \(3,\)"),
        (np.zeros((3, 0)), "auto", ValueError, "at least one column"),
        ("text", "auto", TypeError, "got str"),
        (None, "auto", TypeError, "got NoneType"),
        ([[str(i)] for i in range(5000)], "auto", ValueError, "at most 4096 categories, got 5000 in column '0'"),
        ([[0]], "normal", ValueError, "kinds must be among auto, .*got 'normal'"),
        ([[0]], [3], TypeError, "got int"),
        ([[0]], ["auto", "auto"], ValueError, "one for each of 1 columns, got 2"),
    ],
)
def test_hostile_tables(x, kind, error, message):
    with pytest.raises(error, match=message):
        fit(x, kind)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_tensors_without_a_dense_table_are_refused():
    x = torch.zeros(2, 2)
    for bad in (x.to_sparse(), x.to_sparse_csr(), x.to("meta"), x.to(torch.complex64)):
        with pytest.raises(TypeError, match="X must be a dense table of real numbers, got"):
            Columns.fit_encoding(bad)


def test_tables_of_eight_bits_are_read():
    x = torch.tensor([[0.5, 1.0], [2.0, 1.0]]).to(torch.float8_e4m3fn)
    columns = Columns.fit_encoding(x, "exponential")
    assert torch.equal(columns.encode(x), columns.encode(x.float()))


def test_hostile_values_after_fitting():
    X = np.array([[0, 0.0, 5.0], [1, 1.0, 6.0]])
    columns = fit(X, ["bernoulli", "gaussian", "categorical"], names=["bit", "real", "few"])
    for bad, message in [
        ([[2, 0.0, 5.0]], r"got 2.0 at \[0, 0\]"),
        ([[0, inf, 5.0]], "got inf"),
        ([[0, 1e300, 5.0]], r"in reach, got 1e\+300"),
        ([[0, 0.0, 5.5]], "one of 2 categories, 5.0, 6.0, in this column, got 5.5"),
        ([[0, 0.0]], "must have 3 columns, got 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            columns.encode(bad)
    far = [[0, 1000.0, 5.0]]
    assert columns.encode(far)[0, 1] == 1999
    with pytest.raises(ValueError, match=r"four times the range of the data fitted, got 1000.0 at \[0, 1\]"):
        columns.encode(far, training=True)
    with pytest.raises(TypeError, match="dtype must be"):
        columns.encode(X, torch.float16)
    for rows, message in [(torch.tensor([[2.0, 0, 0]]), "codes below 2 in column 'bit'"), (torch.zeros(2), "shape")]:
        with pytest.raises(ValueError, match=message):
            columns.decode(rows)
    with pytest.raises(ValueError, match="shape"):
        columns.log_base(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="kappa"):
        columns.prior(0.0)
    with pytest.raises(ValueError, match="3 variables, got 2"):
        columns.leaf_first(tree(2, 1))
    for bad in (0, -1, 2**24):
        with pytest.raises(ValueError, match="categories must be"):
            Categorical(bad)
    with pytest.raises(TypeError, match="categories must be an int"):
        Categorical(2.0)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float64])
def test_bits_of_any_dtype(dtype):
    """The quick way for plain codes says what the slow way says."""
    x = (np.random.default_rng(0).random((30, 4)) < 0.5).astype(dtype)
    columns = fit(x)
    assert kinds(columns) == ["bernoulli"] * 4
    slow = fit(x.astype(object))
    assert torch.equal(columns.summary, slow.summary)
    assert torch.equal(columns.encode(x), slow.encode(x.astype(object)))
    np.testing.assert_array_equal(columns.encode(x).numpy(), x)
    back = columns.decode(columns.encode(x))
    assert back.dtype == x.dtype
    np.testing.assert_array_equal(back, x)
    if dtype is not bool:
        x[3, 2] = 7
        with pytest.raises(ValueError, match=r"0 or 1 in this column, got 7.0 at \[3, 2\]"):
            columns.encode(x)


@pytest.mark.parametrize("value", [bool, np.bool_])
@pytest.mark.parametrize("kind", ["auto", "bernoulli", "categorical"])
@pytest.mark.parametrize("form", ["numpy", "pandas"])
def test_truths_among_objects_come_back(form, kind, value):
    X = np.array([[value(True), "a"], [None, "b"], [value(False), None], [value(True), "a"]], object)
    table = X if form == "numpy" else pandas.DataFrame(X, columns=["flag", "text"])
    columns = fit(table, [kind, "auto"])
    assert kinds(columns) == ["bernoulli", "categorical"]
    back = np.asarray(columns.decode(columns.encode(table)))
    assert back[:, 0].tolist() == X[:, 0].tolist()
    assert [type(v) for v in back[:, 0]] == [bool, type(None), bool, bool]
    again = Columns.from_state_dict(columns.state_dict())
    assert again == columns
    assert type(np.asarray(again.decode(columns.encode(table)))[0, 0]) is bool
    assert isinstance(fit(np.array([[1], [None]], object)).categories[0][1], float)


def test_missing_truths_are_not_true():
    columns = fit(pandas.DataFrame({"a": [True, False]}))
    back = columns.decode(torch.tensor([[1.0], [nan], [0.0]]))["a"]
    assert back.isna().tolist() == [False, True, False]
    assert back[[0, 2]].tolist() == [1, 0]
    declared = pandas.DataFrame({"a": pandas.Categorical([True, None], categories=[True, False])})
    columns = fit(declared)
    assert columns.categories == ((True, False),)
    assert columns.decode(columns.encode(declared))["a"].tolist()[0] is True


def test_unknown_categories_are_told_from_the_known():
    few, many = [["red"], ["blue"]], [[f"{i % 20:02}"] for i in range(40)]
    with pytest.raises(ValueError, match=r"one of 2 categories, 'blue', 'red', in .*, got 'green' at \[0, 0\]"):
        fit(few).encode([["green"]])
    with pytest.raises(ValueError, match=r"one of 20 categories, '00', '01', .*, '07', \.\.\., in .*, got '20'"):
        fit(many).encode([["20"]])


def test_a_column_of_names_is_told():
    names = [[f"n{i}", i % 2] for i in range(40)]
    with pytest.warns(UserWarning, match="column 'name' has another text in each row: nothing can be learned"):
        fit(pandas.DataFrame(names, columns=["name", "bit"]))
    fit(names[:16])  # few rows say nothing
    fit([*names, ["n0", 1]])
    fit([[i] for i in range(40)], "categorical")  # numbers may come back
    fit(pandas.DataFrame({"a": pandas.Categorical([f"n{i}" for i in range(40)])}))  # declared


def test_masked_and_half_precision():
    masked = np.ma.MaskedArray([[1, 0], [0, 1]], mask=[[False, True], [False, False]])
    assert fit(masked).encode(masked).isnan().tolist() == [[False, True], [False, False]]
    X = torch.tensor([[1.5], [2.5]], dtype=torch.bfloat16)
    assert fit(X).decode(fit(X).encode(X)).equal(X)
    X = torch.tensor([[1.0, 2.0]], requires_grad=True)
    assert not fit(X).encode(X).requires_grad


def test_priors():
    g = torch.Generator().manual_seed(0)
    X = torch.stack([
        torch.tensor([1.0] * 7 + [0.0] * 2 + [nan]),
        torch.tensor([0.0] * 5 + [2.0] * 4 + [nan]),
        torch.randn(10, generator=g) * 5 + 100,
        torch.tensor([0.0, 0, 0, 0, 0, 20, 20, 20, 20, 20]),
        torch.rand(10, generator=g),
    ], 1)  # fmt: skip
    columns = fit(X, ["bernoulli", Categorical(3), "gaussian", "poisson", "exponential"])
    prior, first = columns.prior(kappa=2.0)
    assert first.tolist() == [0, 2, 5, 9, 13]
    torch.testing.assert_close(prior[:2], 2 * torch.tensor([2.5, 7.5]).double() / 10)
    torch.testing.assert_close(prior[2:5], 2 * torch.tensor([5 + 1 / 3, 1 / 3, 4 + 1 / 3]).double() / 10)
    torch.testing.assert_close(prior[5:9], torch.tensor([0, 0.5, 2, 0.5]).double(), atol=1e-12, rtol=1e-12)
    mean = 100.5 / 11
    torch.testing.assert_close(prior[9:13], torch.tensor([mean**2 / (100 - mean), mean / (100 - mean), 0, 0]).double())
    torch.testing.assert_close(prior[13:], torch.tensor([2, 1, 0, 0]).double())
    structure = hclt(X, 2, columns)
    variable = structure.variable[structure.kind == 0].long()
    start = columns.leaf_first(structure)
    assert start[0] == 0
    assert start.diff().tolist() == columns.width[variable].tolist()
    assert columns.leaf_prior(structure).tolist() == first[variable].tolist()


def test_log_base_makes_densities_of_the_data():
    X = torch.tensor([[3.0, 5.0, 2.0], [7.0, 1.0, nan], [nan, nan, nan]], dtype=torch.float64)
    columns = fit(X, ["gaussian", "poisson", "exponential"])
    rows = columns.encode(X, torch.float64)
    got = columns.log_base(rows)
    normal = torch.distributions.Normal(4.0, 3.0).log_prob(X[:, 0].nan_to_num(0))
    shift, scale = columns.shift[0], columns.scale[0]
    encoded = torch.distributions.Normal((4 - shift) / scale, 3 / scale).log_prob(rows[:, 0].nan_to_num(0))
    poisson = torch.distributions.Poisson(2.0).log_prob(X[:, 1].nan_to_num(0))
    natural = rows[:, 1] * math.log(2) - 2
    exponential = torch.distributions.Exponential(0.7).log_prob(X[:, 2].nan_to_num(0))
    scaled = torch.distributions.Exponential(0.7 * columns.scale[2]).log_prob(rows[:, 2].nan_to_num(0))
    want = [
        (a - b).where(~x.isnan(), 0)
        for a, b, x in zip((normal, poisson, exponential), (encoded, natural, scaled), X.T, strict=True)
    ]
    torch.testing.assert_close(got, sum(want))


def test_pandas_is_not_imported():
    code = """
import sys, numpy, torch
from pyfast.spn import Columns
columns = Columns.fit_encoding(numpy.eye(3))
columns.decode(columns.encode(torch.eye(3)))
assert "pandas" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=300).returncode == 0


values = st.sampled_from([0.0, 1.0, nan, -0.0, 2.5, -1e30])


@given(st.integers(0, 12), st.integers(0, 70), st.booleans(), st.data())
@settings(deadline=None)
def test_unique_rows(n, d, bits, data):
    pool = st.lists(st.sampled_from([0.0, 1.0, nan]) if bits else values, min_size=d, max_size=d)
    few = data.draw(st.lists(pool, min_size=1, max_size=4))
    given_rows = [data.draw(st.sampled_from(few)) for _ in range(n)]
    X = torch.tensor(given_rows, dtype=data.draw(st.sampled_from([torch.float32, torch.float64]))).reshape(n, d)
    seen = {}
    inverse = [seen.setdefault(tuple("nan" if v != v else v for v in row), len(seen)) for row in X.tolist()]
    found = unique_rows(X)
    assert found.inverse.tolist() == inverse
    assert found.multiplicity.tolist() == [inverse.count(i) for i in range(len(seen))]
    torch.testing.assert_close(found.rows[found.inverse], X, rtol=0, atol=0, equal_nan=True)
    assert found.rows.dtype == X.dtype


def test_unique_rows_stay_exact_when_hashes_collide(monkeypatch):
    true = _rows._hash
    monkeypatch.setattr(
        _rows, "_hash", lambda words, attempt: true(words, attempt) % np.uint64(3 if attempt < 2 else 2**63)
    )
    X = torch.arange(200.0).reshape(20, 10)[torch.arange(60) % 20]
    found = unique_rows(X)
    assert found.inverse.tolist() == [i % 20 for i in range(60)]


def test_unique_rows_of_two_nans():
    bits = torch.tensor(
        [[0x7FC00000, 0x3FC00000], [0x7FC00001, 0x3FC00000], [-0x400000, 0x3FC00000]], dtype=torch.int32
    )
    assert unique_rows(bits.view(torch.float32)).multiplicity.tolist() == [3]


@pytest.mark.parametrize(("x", "error"), [
    (np.zeros((2, 2)), TypeError), (torch.zeros(2, 2).long(), TypeError), (torch.zeros(2), ValueError),
])  # fmt: skip
def test_unique_rows_refuses(x, error):
    with pytest.raises(error, match="X must"):
        unique_rows(x)


def naive_information(a, b, categories_a, categories_b, smoothing):
    """Mutual information by its definition."""
    both = [(int(u), int(v)) for u, v in zip(a.tolist(), b.tolist(), strict=True) if u == u and v == v]
    cells = categories_a * categories_b
    total = len(both) + smoothing
    p = [[(both.count((u, v)) + smoothing / cells) / total for v in range(categories_b)] for u in range(categories_a)]
    left, right = [sum(row) for row in p], [sum(column) for column in zip(*p, strict=True)]
    return sum(x * math.log(x / (left[u] * right[v])) for u, row in enumerate(p) for v, x in enumerate(row) if x > 0)


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("widths", [[2] * 5, [2, 3, 2, 4, 3], [2, 20, 17, 3, 40, 2], [30, 17], [1, 2, 1]])
@pytest.mark.parametrize("smoothing", [1.0, 0.25])
def test_information_of_codes(widths, missing, smoothing):
    g = torch.Generator().manual_seed(2)
    base = torch.randint(0, 60, (80, 1), generator=g) + torch.randint(0, 2, (80, len(widths)), generator=g)
    codes = (base % torch.tensor(widths)).double()
    codes[torch.rand(codes.shape, generator=g) < missing] = nan
    got = information.discrete_information(codes, np.array(widths), smoothing)
    for i, j in itertools.permutations(range(len(widths)), 2):
        want = naive_information(codes[:, i], codes[:, j], widths[i], widths[j], smoothing)
        assert got[i, j] == pytest.approx(want, abs=1e-12)
        assert got[i, j] == got[j, i]


def test_information_of_gaussians():
    g = torch.Generator().manual_seed(3)
    X = torch.randn(200, 4, generator=g).double() @ torch.randn(4, 4, generator=g).double()
    X[torch.rand(X.shape, generator=g) < 0.2] = nan
    got = information.gaussian_information(X, 0.0)
    for i, j in itertools.combinations(range(4), 2):
        both = ~(X[:, i].isnan() | X[:, j].isnan())
        r = np.corrcoef(X[both, i], X[both, j])[0, 1]
        assert got[i, j] == pytest.approx(-0.5 * math.log(1 - r * r), rel=1e-9)


def all_trees(d):
    """Edges of every labelled tree, from Pruefer's sequences."""
    for sequence in itertools.product(range(d), repeat=max(d - 2, 0)):
        degree = [1 + sequence.count(v) for v in range(d)]
        edges = []
        for v in sequence:
            leaf = degree.index(1)
            edges.append((leaf, v))
            degree[leaf] -= 1
            degree[v] -= 1
        rest = [v for v in range(d) if degree[v] == 1]
        yield edges + ([tuple(rest)] if d > 1 else [])


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_chow_liu_is_the_best_of_all_trees(d, kind):
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        X = torch.randn(60, d, generator=g) @ torch.randn(d, d, generator=g)
        if kind == "bernoulli":
            X = torch.where(torch.rand(X.shape, generator=g) < 0.1, nan, (X > 0).float())
        columns = fit(X, kind)
        x = columns.encode(X, torch.float64)
        if kind == "gaussian":
            weight = information.gaussian_information(x, 1.0)
        else:
            weight = np.array([[naive_information(a, b, 2, 2, 1.0) for b in x.T] for a in x.T])
        parent = chow_liu(X, columns).tolist()
        assert parent.count(-1) == 1
        got = sum(weight[v, p] for v, p in enumerate(parent) if p >= 0)
        best = max(sum(weight[e] for e in edges) for edges in all_trees(d))
        assert got == pytest.approx(best, abs=1e-10)


def height(parent):
    def depth(v):
        return 0 if parent[v] < 0 else 1 + depth(parent[v])

    return max(map(depth, range(len(parent))))


@pytest.mark.parametrize("d", [1, 2, 3, 7, 12])
def test_trees_are_rooted_at_their_centre(d):
    for seed in range(10):
        weight = torch.rand(d, d, generator=torch.Generator().manual_seed(seed)).numpy()
        parent = information.spanning_tree(weight + weight.T)
        edges = {frozenset((v, int(p))) for v, p in enumerate(parent) if p >= 0}
        assert len(edges) == d - 1
        neighbours = [[w for w in range(d) if frozenset((v, w)) in edges and v != w] for v in range(d)]
        assert height(parent) == min(height(information._rooted(neighbours, root)) for root in range(d))


def test_ties_are_broken_by_number():
    assert chow_liu(np.zeros((10, 5))).tolist() == [-1, 0, 0, 0, 0]
    assert chow_liu(np.empty((0, 4))).tolist() == [-1, 0, 0, 0]
    x = np.repeat(np.arange(8)[:, None] % 2, 4, axis=1)
    assert chow_liu(x).tolist() == [-1, 0, 0, 0]


def test_mixed_columns_share_a_scale():
    """A copy and a monotone image of a column are its neighbours, whatever their families."""
    g = torch.Generator().manual_seed(4)
    a, b = torch.randn(2000, generator=g), torch.randn(2000, generator=g)
    X = torch.stack([a, b, (a > 0).float(), b.exp(), a + 0.1 * b], 1)
    parent = chow_liu(X, ["gaussian", "gaussian", "bernoulli", "exponential", "gaussian"]).tolist()
    edges = {frozenset((v, p)) for v, p in enumerate(parent) if p >= 0}
    assert frozenset((1, 3)) in edges
    assert frozenset((0, 4)) in edges
    assert {frozenset((0, 2)), frozenset((4, 2))} & edges
    assert information.quantile_codes(torch.tensor([nan, 3.0, 3.0, 1.0])).nan_to_num(-1).tolist() == [-1, 7, 7, 2]


def test_threads_do_not_show(threads):
    X = torch.rand(3000, 40, generator=torch.Generator().manual_seed(0)) < 0.3
    threads(lambda: chow_liu(X))


@pytest.mark.parametrize("hidden", [1, 3])
def test_hclt_is_valid(hidden):
    X = (torch.rand(200, 9, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    X[3, 4] = nan
    s = hclt(X, hidden)
    again = Structure.from_csr(s.kind, s.first, s.child, s.variable)
    assert torch.equal(again.child, s.child)
    assert s.num_leaves == 9 * hidden
    assert s.num_weights == 8 * hidden**2 + hidden
    for bad, error in ((0, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match="hidden"):
            hclt(X, bad)
    with pytest.raises(ValueError, match="smoothing"):
        chow_liu(X, smoothing=-1.0)
