"""What scikit-learn asks of an estimator that does not derive from its classes."""

from typing import Any


def tags() -> Any:
    """A density estimator of tables with text and missing values."""
    from sklearn.utils import InputTags, Tags, TargetTags  # only for those who came with it

    taken = InputTags(two_d_array=True, categorical=True, string=True, allow_nan=True)
    return Tags(estimator_type="density_estimator", target_tags=TargetTags(required=False), input_tags=taken)
