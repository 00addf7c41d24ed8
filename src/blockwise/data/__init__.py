"""Images on disk -> batches: one LightningDataModule, one small class a data set."""

from blockwise.data.datamodule import BlockwiseDataModule
from blockwise.data.samples import Sample, Source, Splits

__all__ = ["BlockwiseDataModule", "Sample", "Source", "Splits"]
