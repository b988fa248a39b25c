"""The estimators among scikit-learn's, and their figures."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator

from pyfast.spn import EM, BayesSPN, ImplicitTree, tree

# Checks that ask for the words of scikit-learn's own messages; ours name the argument, the rule and the value.
OTHER_WORDS = {
    "check_complex_data": r"^X must hold numbers or strings, got complex128$",
    "check_n_features_in_after_fitting": r"score\(\)` does not check",
    "check_estimators_empty_data_messages": r"Got X must have at least one column, got shape \(12, 0\)",
}
WHY_NOT = {
    BayesSPN: OTHER_WORDS,
    ImplicitTree: OTHER_WORDS,
    EM: OTHER_WORDS | {"check_parameters_default_constructible": "dtype of torch|'dtype'"},
}


KINDS = [BayesSPN, EM, ImplicitTree]


def small(kind, **options):
    sizes = {BayesSPN: {"hidden": 2, "sweeps": 6}, EM: {"hidden": 2, "iterations": 4}, ImplicitTree: {"sweeps": 4}}
    return kind(**sizes[kind] | options)


def numbers(n=60, d=3):
    return np.random.default_rng(0).normal(size=(n, d))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # of the checks themselves
def test_scikit_learns_checks(kind):
    found = {r["check_name"]: r for r in check_estimator(small(kind), on_fail=None)}
    assert len(found) > 30
    failed = {name: str(r["exception"]) for name, r in found.items() if r["status"] == "failed"}
    assert failed.keys() == WHY_NOT[kind].keys()
    for name, said in failed.items():
        assert pytest.raises(AssertionError, match=WHY_NOT[kind][name]).matches(AssertionError(said)), said


@pytest.mark.parametrize("kind", KINDS)
def test_clones_pipelines_and_searches(kind):
    X, model = numbers(), small(kind, seed=3)
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert not hasattr(copy, "columns_")
    piped = make_pipeline(StandardScaler(), model).fit(X)
    scaled = StandardScaler().fit_transform(X)
    np.testing.assert_array_equal(piped.score_samples(X), clone(model).fit(scaled).score_samples(scaled))
    name = "states" if kind is ImplicitTree else "hidden"
    found = GridSearchCV(model, {name: [1, 3]}, cv=2).fit(X)
    assert found.best_params_[name] in (1, 3)
    assert get_tags(model).input_tags.allow_nan
    assert not get_tags(model).target_tags.required


@pytest.mark.parametrize("kind", [BayesSPN, EM])
def test_tables_of_three_libraries_are_one(kind):
    X = (numbers() > 0).astype(np.float32)
    X[::7, 1] = np.nan
    tables = X, torch.from_numpy(X), pd.DataFrame(X, columns=list("abc"))
    models = [small(kind).fit(table) for table in tables]
    for model, table in zip(models, tables, strict=True):
        np.testing.assert_array_equal(model.score_samples(table), models[0].score_samples(X))
        drawn = model.sample(evidence=table)
        assert type(drawn) is type(table)
        np.testing.assert_array_equal(np.asarray(drawn), models[0].sample(evidence=X))
    assert list(models[2].mpe(tables[2]).columns) == ["a", "b", "c"]


def test_plot_shows_chains_and_moves():
    X = (numbers(80, 4) > 0).astype(float)
    exact = small(BayesSPN, chains=3).fit(X).plot()
    (axis,) = exact.axes
    assert [len(line.get_xdata()) for line in axis.get_lines()] == [6, 6, 6]
    moves = BayesSPN(tree(4, sum_children=2, product_children=2), kernel="isir", sweeps=6).fit(X).plot()
    assert len(moves.axes) == 2
    heights = [bar.get_height() for bar in moves.axes[1].patches]
    assert 0 < max(heights) <= 1
    with pytest.raises(ValueError, match="fit must be called first"):
        BayesSPN().plot()


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_tables_are_refused(kind):
    from scipy.sparse import csr_array

    with pytest.raises(TypeError, match=r"X must be an array, .*, got a sparse csr_array"):
        small(kind).fit(csr_array(np.eye(3)))


@pytest.mark.parametrize("kind", [BayesSPN, EM])
@pytest.mark.parametrize("form", ["numpy", "float32", "pandas"])
def test_known_values_come_back_to_the_bit(kind, form):
    X = 1e3 * numbers(40) + 0.1
    X[:, 2] = np.arange(40) % 3 / 10
    evidence = X.copy()
    evidence[::2, 0] = evidence[1::3, 1] = np.nan
    table, known = (t.astype(np.float32) if form == "float32" else t for t in (X, evidence))
    if form == "pandas":
        table, known = (pd.DataFrame(t, columns=["a", "b", "c"]) for t in (X, evidence))
    model = small(kind).fit(table)
    for filled in (model.sample(evidence=known), model.mpe(known)):
        assert type(filled) is type(known)
        there = ~np.isnan(evidence)
        np.testing.assert_array_equal(np.asarray(filled)[there], np.asarray(known)[there])
        assert not np.isnan(np.asarray(filled)).any()


def test_what_is_printed_is_short():
    model = small(BayesSPN).fit(pd.DataFrame({"x": numbers()[:, 0], "n": np.arange(60) % 4}))
    assert model.columns_.kinds == {"x": "gaussian", "n": "categorical"}
    assert repr(model.diagnostics()).startswith("Diagnostics(r_hat=")
    assert len(repr(model.diagnostics())) < 150


def test_an_implicit_tree_is_changed_and_shown_by_its_arguments():
    tree = ImplicitTree(10, seed=3)
    assert repr(tree) == "ImplicitTree(sum_children=10, seed=3)"
    assert tree.set_params(sweeps=4, seed=0) is tree
    assert repr(tree) == "ImplicitTree(sum_children=10, sweeps=4)"
    with pytest.raises(ValueError, match=r"params must be among \['burn', .*\], got width"):
        tree.set_params(seed=9, width=3)
    assert tree.seed == 0
    nodes = tree.fit(numbers()).num_nodes
    assert tree.set_params(sum_children=99, product_children=9).num_nodes == nodes  # of what was fitted
