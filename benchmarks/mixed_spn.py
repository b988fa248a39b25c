"""Real tables of mixed columns: held-out likelihood, imputation and calibration against other density estimators.

    python benchmarks/mixed_spn.py            all tables, some minutes
    python benchmarks/mixed_spn.py --quick    one small table, few sweeps

Tables come with palmerpenguins, scikit-learn and statsmodels. One row in three is held out; a fifth of its entries,
drawn at random, are hidden and asked for. All models get the same rows, with default arguments. deeprob-kit's LearnSPN
takes no missing values in training: it gets column means and modes there; so does the Gaussian mixture, whose
components BIC counts and which takes categories as zeros and ones. benchmarks/report.py makes docs/spn_mixed.md of it.

Source: Horst, Hill and Gorman, 2020, penguins; Fair, 1978, affairs; Burnham, American National Election Studies, 1996;
    Forina et al., 1991, wine.
"""

import argparse
import importlib.util
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import pyfast
from pyfast.spn import EM, BayesSPN

ROOT = Path(__file__).resolve().parents[1]
LEVELS = np.linspace(0.1, 0.9, 9)
DRAWS = 100
TEXT = """One row in three is held out. Likelihoods are densities of real numbers times probabilities of categories \
and counts, in nats a row and in the units of the tables: larger is better. A fifth of the held-out entries is hidden: \
the error of real numbers and counts is the root mean square over columns' standard deviations (mean of 100 draws \
given what is seen; deeprob-kit's most probable completion, a mixture's mean), that of categories the share of wrong \
ones. Seconds are the processors' for learning, of all threads together. {machine}"""
NOTE = """Gaussian mixture: of the real columns alone for likelihoods, since a density of categories compares with no \
probability; of all columns for imputation. "columns alone" fills in means and modes."""


def penguins():
    from palmerpenguins import load_penguins

    table = load_penguins()
    table["year"] = table["year"].astype(str)
    return table


def wine():
    from sklearn.datasets import load_wine

    table = load_wine(as_frame=True).frame
    table["target"] = table["target"].astype(str)
    return table


def affairs():
    from statsmodels.datasets import fair

    table = fair.load_pandas().data
    for name in ("rate_marriage", "religious", "occupation", "occupation_husb"):
        table[name] = table[name].astype(int).astype(str)
    return table


def election():
    from statsmodels.datasets import anes96

    table = anes96.load_pandas().data[["TVnews", "selfLR", "ClinLR", "DoleLR", "PID", "age", "educ", "income", "vote"]]
    for name in ("selfLR", "ClinLR", "DoleLR", "PID", "educ", "vote"):
        table[name] = table[name].astype(int).astype(str)
    return table


TABLES = {"penguins": penguins, "wine": wine, "affairs": affairs, "election": election}


class Coded:
    """A table as numbers: categories as codes, text of training data first; and which columns are what."""

    def __init__(self, train):
        self.columns = pyfast.spn.Columns.fit_encoding(train)
        self.kinds = [self.columns._kind(j) for j in range(len(self.columns))]
        self.text = [c is not None for c in self.columns.categories]
        self.real = [kind in ("gaussian", "exponential") for kind in self.kinds]

    def __call__(self, table):
        """Codes and numbers, NaN where missing."""
        out = np.empty(table.shape)
        encoded = self.columns.encode(table, torch.float64).numpy()
        for j, categories in enumerate(self.columns.categories):
            out[:, j] = encoded[:, j] if categories is not None else table.iloc[:, j].astype(float)
        return out

    def fill(self, codes):
        """What to put where values are missing: the mean or the most frequent code."""
        usual = [
            np.bincount(x[~np.isnan(x)].astype(int)).argmax() if text else np.nanmean(x)
            for x, text in zip(codes.T, self.text, strict=True)
        ]
        return np.array(usual)


def filled(codes, usual):
    return np.where(np.isnan(codes), usual, codes)


class Ours:
    """An estimator of this package."""

    def __init__(self, model, train, **fit):
        self.model = model.fit(train, **fit)

    def score(self, table):
        """Mean log likelihood of a row."""
        return float(self.model.log_prob(table).mean())

    def draws(self, asked, n):
        """Completed tables."""
        return [self.model.sample(evidence=asked, seed=i) for i in range(n)]


class Deeprob:
    """LearnSPN, on codes without gaps; Gaussians for numbers and counts."""

    def __init__(self, coded, train):
        from deeprob.spn.learning.wrappers import learn_estimator
        from deeprob.spn.structure.leaf import Categorical, Gaussian

        self.coded, codes = coded, coded(train)
        self.usual = coded.fill(codes)
        domains = [
            list(range(len(c))) if c is not None else (float(np.nanmin(x)), float(np.nanmax(x)))
            for c, x in zip(coded.columns.categories, codes.T, strict=True)
        ]
        kinds = [Categorical if text else Gaussian for text in coded.text]
        rows = filled(codes, self.usual).astype(np.float32)
        self.root = learn_estimator(
            rows, kinds, domains, min_rows_slice=max(32, len(rows) // 10), random_state=0, verbose=False
        )

    def score(self, codes):
        """Mean log likelihood of a row."""
        from deeprob.spn.algorithms.inference import log_likelihood

        return float(np.mean(log_likelihood(self.root, codes.astype(np.float32))))

    def completed(self, codes):
        """Codes without gaps."""
        from deeprob.spn.algorithms.inference import mpe

        return mpe(self.root, codes.astype(np.float32).copy())


class Mixture:
    """Gaussian mixture of standardised numbers and of categories as zeros and ones, its size chosen by BIC."""

    def __init__(self, coded, codes, columns):
        from sklearn.mixture import GaussianMixture

        self.coded, self.columns = coded, columns
        self.usual = coded.fill(codes)
        self.centre, self.scale = np.nanmean(codes, 0), np.nanstd(codes, 0) + 1e-12
        rows = self.wide(filled(codes, self.usual))
        tried = [GaussianMixture(k, reg_covar=1e-3, random_state=0, max_iter=500).fit(rows) for k in range(1, 9)]
        self.model = min(tried, key=lambda m: m.bic(rows))

    def wide(self, codes):
        """Standardised numbers, categories as zeros and ones."""
        parts = []
        for j in self.columns:
            if self.coded.text[j]:
                one = (codes[:, [j]] == np.arange(len(self.coded.columns.categories[j]))).astype(float)
                parts.append(np.where(np.isnan(codes[:, [j]]), np.nan, one))
            else:
                parts.append((codes[:, [j]] - self.centre[j]) / self.scale[j])
        return np.concatenate(parts, 1)

    def score(self, codes):
        """Of real columns alone, row by row over what is there."""
        return float(np.mean([self._row(x)[0] for x in self.wide(codes)])) - float(
            np.mean((~np.isnan(codes[:, self.columns])) @ np.log(self.scale[self.columns]))
        )

    def _row(self, x):
        """Log density of what is there, and the mean of all given that."""
        m = self.model
        seen = ~np.isnan(x)
        logs, means = [], []
        for weight, mean, cov in zip(m.weights_, m.means_, m.covariances_, strict=True):
            away, inside = x[seen] - mean[seen], cov[np.ix_(seen, seen)]
            solved = np.linalg.solve(inside, away)
            density = -0.5 * (away @ solved + np.linalg.slogdet(2 * np.pi * inside)[1])
            logs.append(np.log(weight) + density)
            full = mean + cov[:, seen] @ solved
            full[seen] = x[seen]
            means.append(full)
        logs = np.array(logs)
        total = np.logaddexp.reduce(logs)
        return total, np.exp(logs - total) @ np.array(means)

    def completed(self, codes):
        """Codes without gaps."""
        full = np.array([self._row(x)[1] for x in self.wide(codes)])
        out, at = codes.copy(), 0
        for j in self.columns:
            if self.coded.text[j]:
                width = len(self.coded.columns.categories[j])
                out[:, j], at = full[:, at : at + width].argmax(1), at + width
            else:
                out[:, j], at = full[:, at] * self.scale[j] + self.centre[j], at + 1
        return out


def errors(guess, truth, hidden, coded, scale):
    """Root mean square error of numbers over standard deviations, and share of wrong categories, of hidden entries."""
    numbers, wrong = [], []
    for j, text in enumerate(coded.text):
        at = hidden[:, j]
        if text:
            wrong.append(guess[at, j] != truth[at, j])
        else:
            numbers.append((guess[at, j] - truth[at, j]) / scale[j])
    rms = float(np.sqrt(np.mean(np.concatenate(numbers) ** 2)))
    return {"rmse": rms, "wrong": float(np.mean(np.concatenate(wrong)))}


def imputed(draws, coded):
    """The mean of drawn numbers, the most frequent of drawn categories."""
    out = draws.mean(0)
    for j, text in enumerate(coded.text):
        if text:
            width = len(coded.columns.categories[j])
            out[:, j] = np.stack([(draws[:, :, j] == c).sum(0) for c in range(width)]).argmax(0)
    return out


def calibration(draws, truth, hidden, coded):
    """How often central intervals of drawn numbers hold the truth, and how often a category said with p is there."""
    inside, said, there = {level: [] for level in LEVELS}, [], []
    for j, text in enumerate(coded.text):
        at = hidden[:, j]
        if not at.any():
            continue
        x, y = draws[:, at, j], truth[at, j]
        if text:
            for c in range(len(coded.columns.categories[j])):
                said.append((x == c).mean(0))
                there.append(y == c)
        elif coded.real[j]:
            for level in LEVELS:
                low, high = np.quantile(x, [(1 - level) / 2, (1 + level) / 2], axis=0)
                inside[level].append((low <= y) & (y <= high))
    numbers = [(float(level), float(np.mean(np.concatenate(x)))) for level, x in inside.items() if x]
    p, y = np.concatenate(said), np.concatenate(there)
    group = np.minimum((p * 10).astype(int), 9)
    categories = [(float(p[group == g].mean()), float(y[group == g].mean())) for g in range(10) if (group == g).any()]
    off = float(
        np.average(np.abs([a - b for a, b in categories]), weights=np.bincount(group, minlength=10)[np.unique(group)])
    )
    return {"numbers": numbers, "categories": categories, "categories_off": off}


def run(table, quick):
    """One table's results."""
    g = np.random.default_rng(0)
    table = table.iloc[g.permutation(len(table))].reset_index(drop=True)
    held = np.arange(len(table)) % 3 == 0
    train, test = table[~held].reset_index(drop=True), table[held].reset_index(drop=True)
    coded = Coded(train)
    truth = coded(test)
    hidden = (g.random(truth.shape) < 0.2) & ~np.isnan(truth)
    asked = (
        test.astype(object)
        .mask(pd.DataFrame(hidden, columns=test.columns))
        .astype({name: dtype for name, dtype in test.dtypes.items() if dtype.kind == "f"})
    )
    codes = np.where(hidden, np.nan, truth)
    scale = np.nanstd(coded(train), 0)
    cut = len(train) * 4 // 5
    options = {"sweeps": 20} if quick else {}
    models, seconds = {}, {}
    real = np.flatnonzero(coded.real)
    makers = {
        "BayesSPN": lambda: Ours(BayesSPN(**options), train),
        "EM": lambda: Ours(EM(), train[:cut], X_val=train[cut:]),
        "deeprob-kit LearnSPN": lambda: Deeprob(coded, train),
        "Gaussian mixture": lambda: Mixture(coded, coded(train), range(truth.shape[1])),
    }
    if importlib.util.find_spec("deeprob") is None:
        del makers["deeprob-kit LearnSPN"]
    found = {}
    for name, make in makers.items():
        start = time.process_time()
        models[name] = model = make()
        seconds[name] = time.process_time() - start
        found[name] = {"seconds": seconds[name]}
        if isinstance(model, Ours):
            draws = np.stack([coded(pd.DataFrame(x)) for x in model.draws(asked, DRAWS)])
            guess = imputed(draws, coded)
            only = test.copy()
            for j in np.flatnonzero(~np.array(coded.real)):
                only[only.columns[j]] = np.nan if test.dtypes.iloc[j].kind == "f" else None
            found[name] |= {"all": model.score(test)} | ({"real": model.score(only)} if len(real) else {})
            if name == "BayesSPN":
                found[name]["calibration"] = calibration(draws, truth, hidden, coded)
        else:
            guess = model.completed(codes)
            if isinstance(model, Deeprob):
                found[name]["all"] = model.score(truth)
                if len(real):
                    found[name]["real"] = model.score(np.where(coded.real, truth, np.nan))
            elif len(real):
                found[name]["real"] = Mixture(coded, coded(train), real).score(truth)
        found[name] |= errors(guess, truth, hidden, coded, scale)
    usual = np.broadcast_to(coded.fill(coded(train)), truth.shape)
    found["columns alone"] = errors(usual, truth, hidden, coded, scale)
    return {
        "rows": len(train),
        "test_rows": len(test),
        "missing": int(table.isna().sum().sum()),
        "columns": str(coded.columns),
        "models": found,
    }


def report(results):
    """What report.py makes docs/spn_mixed.md of."""
    tables, plots = [], []
    for name, result in results.items():
        rows = []
        for model, r in result["models"].items():
            cells = [f"{r[key]:.3f}" if key in r else "" for key in ("all", "real", "rmse", "wrong")]
            rows.append([model, *cells, f"{r['seconds']:.1f}" if "seconds" in r else ""])
        text = (
            f"{result['columns']}; {result['rows']} rows, {result['test_rows']} held out, {result['missing']} missing."
        )
        header = ["", "whole rows, nats", "real columns, nats", "error of numbers", "wrong categories", "seconds"]
        tables.append({"title": name, "text": text, "header": header, "rows": rows})
    lines = {"numbers": {"ideal": [(0, 0), (1, 1)]}, "categories": {"ideal": [(0, 0), (1, 1)]}}
    for name, result in results.items():
        for kind, to in lines.items():
            if result["models"]["BayesSPN"]["calibration"][kind]:
                to[name] = result["models"]["BayesSPN"]["calibration"][kind]
    titles = {
        "numbers": ("central intervals", "share of hidden numbers inside"),
        "categories": ("", "how often it was so"),
    }
    for kind, drawn in lines.items():
        x = "level of the interval" if kind == "numbers" else "probability given to a category"
        plots.append({"title": f"hidden {kind}", "x": x, "y": titles[kind][1], "scale": "linear", "lines": drawn})
    machine = f"pyfast {pyfast.__version__}, kernels {pyfast._C.level}, {torch.get_num_threads()} threads."
    return {
        "script": "mixed_spn",
        "title": "Sum-product networks on mixed tables",
        "text": TEXT.format(machine=machine) + "\n\n" + NOTE,
        "tables": tables,
        "plots": plots,
        "results": results,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*TABLES, []], help="tables; by default all")
    parser.add_argument("--quick", action="store_true", help="one small table, few sweeps")
    parser.add_argument("--output", type=Path, help="by default in benchmarks/results, of --quick in build")
    options = parser.parse_args()
    place = ROOT / ("build" if options.quick else "benchmarks/results")
    options.output = options.output or place / "spn_mixed.json"
    results = {}
    for name in options.names or (["wine"] if options.quick else TABLES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the peers
            results[name] = run(TABLES[name](), options.quick)
        for model, r in results[name]["models"].items():
            print(name, model, {k: v for k, v in r.items() if k != "calibration"}, flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report(results), indent=1, ensure_ascii=False) + "\n")
    print(f"{options.output} written; python benchmarks/report.py makes docs/spn_mixed.md of it")


if __name__ == "__main__":
    main()
