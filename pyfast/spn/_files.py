"""What :class:`BayesSPN` writes to files: tensors, numbers and text, no code."""

import json
from collections.abc import Mapping
from typing import Any

from pyfast.spn._chain import State
from pyfast.spn._columns import Columns
from pyfast.spn._hyper import Hyper
from pyfast.spn._network import Network
from pyfast.spn._structure import Structure


def contents(model: Any) -> dict[str, Any]:
    """All that a fitted estimator knows, but for the data."""
    params = model.get_params()
    if isinstance(model.structure, Structure):
        params["structure"] = "given"
    if not isinstance(model.columns, str):
        params["columns"] = "given"
    return {
        "params": json.dumps(params, default=lambda number: number.item()),  # of numpy's
        "structure": model.structure_.state_dict(),
        "columns": model.columns_.state_dict(),
        "chains": [c.state_dict() for c in model._chains] or model._chain_states,
        "kept": [s._asdict() for s in model._kept],
        "states": [s._asdict() for s in model.states_],  # mostly the same tensors, which are written once
        "trace": model._trace,
        "data": [model._data, model.num_rows_],
        "until": model._until,
    }


def restore(model: Any, file: Mapping[str, Any]) -> None:
    """Make a new estimator the one whose contents these are."""
    model.set_params(**json.loads(file["params"]))
    model.structure_ = Structure.from_state_dict(file["structure"])
    model.columns_ = Columns.from_state_dict(file["columns"])
    if model.structure == "given":
        model.structure = model.structure_
    if model.columns == "given":
        model.columns = "auto"
    model._network = Network(model.structure_, model.columns_)
    model._hyper = Hyper(model._network, model.columns_, model.mass, model.kappa)
    model._chains, model._chain_states = [], file["chains"]
    model._kept = [State(**s) for s in file["kept"]]
    model.states_ = [State(**s) for s in file["states"]]
    model._trace = file["trace"]
    model._data, model.num_rows_ = file["data"]
    model.n_features_in_ = len(model.columns_)
    model._until = file["until"]
    model._burned = model._burn_in(min(int(c["sweeps"]) for c in file["chains"]))
