"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, shipped in the package."""

from __future__ import annotations

from typing import Any

import numpy as np

from blockwise.data.samples import Sample, Source, Splits, split_by_seed
from blockwise.errors import InputError


class Digits(Source):
    """Handwritten digits, split at random by seed."""

    name = "digits"

    def __init__(
        self,
        *,
        train_per_class: int | None = 40,
        val_per_class: int | None = 20,
        test_per_class: int | None = 80,
        seed: int = 0,
    ) -> None:
        self.sizes: dict[str, Any] = {
            "train_per_class": train_per_class,
            "val_per_class": val_per_class,
            "test_per_class": test_per_class,
        }
        self.seed = seed

    def splits(self) -> Splits:
        """Return the splits, with the digits as greyscale images.

        Raises:
            InputError: scikit-learn is not installed, or a class is too small for the split.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise InputError(
                "data=digits is part of scikit-learn, which is not installed: pip install scikit-learn"
            ) from error
        digits = load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
        samples = [Sample(f"{i:04d}", int(label), pixels[i]) for i, label in enumerate(digits.target)]
        return split_by_seed(samples, [str(digit) for digit in range(10)], **self.sizes, seed=self.seed)
