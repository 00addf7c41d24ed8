"""Load images and make batches: one LightningDataModule, and one small class per data set in `sources`."""

from blockwise.data.datamodule import BlockwiseDataModule
from blockwise.data.samples import Sample, Source, Splits
from blockwise.data.sources.caltech101 import Caltech101
from blockwise.data.sources.digits import Digits
from blockwise.data.sources.flowers102 import Flowers102
from blockwise.data.sources.huggingface import HuggingFace
from blockwise.data.sources.imagefolder import ImageFolder
from blockwise.data.sources.table import CsvTable

__all__ = [
    "BlockwiseDataModule",
    "Caltech101",
    "CsvTable",
    "Digits",
    "Flowers102",
    "HuggingFace",
    "ImageFolder",
    "Sample",
    "Source",
    "Splits",
]
