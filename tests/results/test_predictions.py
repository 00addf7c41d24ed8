"""Predictions of each image: what is kept, and when it is read again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from blockwise.recipe.metrics import compute_metrics, predictions
from blockwise.results import read_predictions
from blockwise.results.predictions import PREDICTIONS, from_bytes, to_bytes
from blockwise.study.run import run


def made_up(images=50, classes=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, classes, generator=generator), torch.randint(classes, (images,), generator=generator)


def test_they_give_the_metrics_again():
    logits, labels = made_up()
    kept = from_bytes(to_bytes({"val": predictions(logits, labels)}, "abcd"))["val"]
    metrics = compute_metrics(logits, labels)
    assert kept.classes == ("a", "b", "c", "d")
    assert kept.correct.mean() == pytest.approx(metrics["top1"])
    assert -kept.log_likelihood.mean() == pytest.approx(metrics["loss"])
    assert np.allclose(kept.confidence, logits.softmax(1).max(1).values)
    assert np.array_equal(kept.predicted, logits.argmax(1))


def test_a_file_has_the_same_bytes_each_time():
    assert (
        len({to_bytes({"val": predictions(*made_up()), "test": predictions(*made_up(9))}, "abcd") for _ in "12"}) == 1
    )


def test_more_classes_than_two_bytes_count():
    classes = [str(number) for number in range(70_000)]
    kept = {"label": [69_999], "predicted": [3], "confidence": [0.5], "log_likelihood": [-1.0]}
    assert from_bytes(to_bytes({"test": kept}, classes))["test"].label.tolist() == [69_999]


@pytest.mark.parametrize("name", ["label", "predicted", "confidence", "log_likelihood"])
def test_arrays_that_do_not_fit_together_are_refused(name):
    kept = predictions(*made_up())
    with pytest.raises(ValueError, match="do not fit together"):
        from_bytes(to_bytes({"val": {**kept, name: kept[name][:-1]}}, "abcd"))
    with pytest.raises(ValueError, match="a class has no name|a value is not finite"):
        worse = kept[name].clone()
        worse[0] = 9 if name in ("label", "predicted") else float("nan")
        from_bytes(to_bytes({"val": {**kept, name: worse}}, "abcd"))


def test_those_of_the_best_epoch_are_kept(small, console):
    for record in run(small("block=[head,1]", "optimizer.lr=[1e-3,1e-1]", "trainer.max_epochs=3"), console):
        for split in ("val", "test"):
            kept, metrics = read_predictions(record, split), record.metrics.__dict__[split]
            assert len(kept.label) == getattr(record.data, split)
            assert kept.correct.mean() == pytest.approx(metrics["top1"])
            assert -kept.log_likelihood.mean() == pytest.approx(metrics["loss"], rel=1e-5)


def test_a_changed_or_missing_file_is_not_read(small, console):
    (record,) = run(small("block=head", "trainer.max_epochs=1"), console)
    assert read_predictions(replace(record, files={})) is None
    path = Path(record.folder, PREDICTIONS)
    content = bytearray(path.read_bytes())
    content[8 + int.from_bytes(content[:8], "little")] ^= 1  # the last bit of a number, which stays a number
    path.write_bytes(content)
    assert read_predictions(record) is None
    path.unlink()
    assert read_predictions(record, "test") is None
