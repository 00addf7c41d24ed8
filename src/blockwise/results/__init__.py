"""Records on disk: written once per cell, and read without importing torch."""

from blockwise.results.predictions import Predictions, read_predictions
from blockwise.results.record import METRICS, Metrics, Record
from blockwise.results.store import (
    ResultStore,
    find_records,
    read_history,
    read_record,
    read_records,
    settings_hash,
    sweep_hash,
)

__all__ = [
    "METRICS",
    "Metrics",
    "Predictions",
    "Record",
    "ResultStore",
    "find_records",
    "read_history",
    "read_predictions",
    "read_record",
    "read_records",
    "settings_hash",
    "sweep_hash",
]
