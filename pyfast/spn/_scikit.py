"""What scikit-learn asks of an estimator that does not derive from its classes."""

import inspect
from collections.abc import Mapping
from typing import Any


def tags() -> Any:
    """A density estimator of tables with text and missing values."""
    from sklearn.utils import InputTags, Tags, TargetTags  # only for those who came with it

    taken = InputTags(two_d_array=True, categorical=True, string=True, allow_nan=True)
    return Tags(estimator_type="density_estimator", target_tags=TargetTags(required=False), input_tags=taken)


def params(estimator: Any) -> dict[str, Any]:
    """The constructor's arguments."""
    return {name: getattr(estimator, name) for name in inspect.signature(type(estimator)).parameters}


def set_params(estimator: Any, changed: Mapping[str, Any]) -> None:
    """Change the constructor's arguments; none where there is one of another name."""
    known = params(estimator)
    for name in changed:
        if name not in known:
            raise ValueError(f"params must be among {sorted(known)}, got {name}")
    for name, value in changed.items():
        setattr(estimator, name, value)


def shown(estimator: Any) -> str:
    """The constructor's call, without what is as by default."""
    default = params(type(estimator)())
    changed = (f"{k}={v!r}" for k, v in params(estimator).items() if v is not default[k] and v != default[k])
    return f"{type(estimator).__name__}({', '.join(changed)})"
