import pandas as pd
import pytest

from blockwise.analysis.report.classes import confusion_matrix, gains_by_class

KEPT = pd.DataFrame(
    {"label": ["a", "a", "b", "b", "c", "c"], "predicted": ["a", "b", "b", "b", "a", "c"]},
)


def test_confusion_is_a_fraction_of_the_true_class():
    assert confusion_matrix(KEPT).to_numpy().tolist() == [[0.5, 0.5, 0], [0, 1, 0], [0.5, 0, 0.5]]


def test_of_many_classes_those_with_the_most_errors_are_kept():
    assert list(confusion_matrix(KEPT, most=2)) == ["a", "b"] or list(confusion_matrix(KEPT, most=2)) == ["a", "c"]


def test_gains_are_ordered_and_both_ends_kept():
    baseline = KEPT.assign(predicted=["a", "a", "a", "b", "c", "c"])
    gains = gains_by_class(KEPT, baseline)
    assert gains.to_dict() == pytest.approx({"b": 0.5, "a": -0.5, "c": -0.5})
    assert gains.index[0] == "b"
    assert list(gains_by_class(KEPT, baseline, most=2).index) == ["b", "c"]
