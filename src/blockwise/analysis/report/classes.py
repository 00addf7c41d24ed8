"""Per-class results from stored predictions: confusion matrices and gains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from blockwise.analysis.summary import Row
from blockwise.io.files import open_regular
from blockwise.results.predictions import read_predictions
from blockwise.results.record import Record
from blockwise.results.store import read_history

SHOWN = 20


def predictions(row: Row) -> pd.DataFrame | None:
    """Return `label` and `predicted` of every test image for all seeds; None if there are no stored predictions."""
    frames = [frame for record in row.records if (frame := _frame(record)) is not None]
    return pd.concat(frames) if frames else None


def history(row: Row) -> pd.Series | None:
    """Return validation accuracy by epoch, averaged over seeds; None if there is no stored history."""
    histories = [read_history(folder) for record in row.records if (folder := record.folder) is not None]
    curves = [pd.Series([epoch["val"]["top1"] for epoch in epochs]) for epochs in histories if epochs]
    return pd.concat(curves, axis=1).mean(axis=1) if curves else None


def confusion_matrix(kept: pd.DataFrame, most: int = SHOWN) -> pd.DataFrame:
    """Return the fraction of each true class (row) that is predicted as each class (column).

    With more than `most` classes, only those with the most errors are shown, and rows do not add up to 1.
    """
    classes = sorted({*kept["label"], *kept["predicted"]})
    images = kept["label"].value_counts().reindex(classes)
    if len(classes) > most:
        wrong = kept[kept["label"] != kept["predicted"]]
        errors = wrong["label"].value_counts().add(wrong["predicted"].value_counts(), fill_value=0)
        classes = sorted(errors.sort_values(ascending=False, kind="stable").index[:most])
        kept = kept[kept["label"].isin(classes) & kept["predicted"].isin(classes)]
    matrix = pd.crosstab(kept["label"], kept["predicted"]).reindex(index=classes, columns=classes, fill_value=0)
    return matrix.div(images.loc[classes], axis=0).fillna(0.0)


def gains_by_class(kept: pd.DataFrame, baseline: pd.DataFrame, most: int = SHOWN) -> pd.Series:
    """Return the gain in accuracy of each class over a baseline, as fractions, highest first.

    With more than `most` classes, only those with the highest and the lowest gains are returned.
    """
    gains = (_recall(kept) - _recall(baseline)).dropna().sort_values(ascending=False, kind="stable")
    return gains if len(gains) <= most else pd.concat([gains.iloc[: most // 2], gains.iloc[-(most // 2) :]])


def _recall(kept: pd.DataFrame) -> pd.Series:
    return (kept["label"] == kept["predicted"]).groupby(kept["label"]).mean()


def _frame(record: Record) -> pd.DataFrame | None:
    if (kept := read_predictions(record, "test")) is not None:
        names = np.array(kept.classes, object)
        return pd.DataFrame({"label": names[kept.label], "predicted": names[kept.predicted]})
    return None if record.folder is None else _of_first_versions(record.folder)


def _of_first_versions(folder: str) -> pd.DataFrame | None:
    """Return the predictions that earlier versions kept, as names of classes."""
    try:
        with open_regular(Path(folder, "predictions.csv")) as file:
            frame = pd.read_csv(file, keep_default_na=False, dtype=str)[["label", "predicted"]]
    except (OSError, ValueError, KeyError):  # missing or truncated
        return None
    return frame if len(frame) else None
