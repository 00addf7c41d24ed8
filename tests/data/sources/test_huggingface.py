"""Folders and a cache of the library `datasets`, without a network."""

import io
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from blockwise.backbone.makers.hub import UnreachableError
from blockwise.data.decode import decode
from blockwise.data.samples import fingerprint
from blockwise.data.sources import huggingface
from blockwise.data.sources.huggingface import HuggingFace
from blockwise.errors import InputError


def test_without_the_library_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'blockwise\[huggingface\]'"):
        HuggingFace(tmp_path).splits()


@pytest.fixture
def library(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def refuse():
        raise UnreachableError("https://huggingface.co", "no network in tests")

    monkeypatch.setattr(huggingface, "check_hub", refuse)
    return datasets


def picture(number):
    return Image.fromarray(np.full((8, 10, 3), number, np.uint8))


def encoded(number):
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def part(library, count, kind=None, **columns):
    """A split of `count` images whose pixels tell their row."""
    labels = [row % 2 for row in range(count)]
    classes = library.ClassLabel(names=["cat", "dog"])
    features = library.Features({"image": library.Image(), "label": kind or classes})
    values = {"image": [encoded(row) for row in range(count)], "label": labels, **columns}
    return library.Dataset.from_dict(values, features=features)


def counts(splits):
    return [len(samples) for samples in (splits.train, splits.val, splits.test)]


def everything(splits):
    return [sample for samples in (splits.train, splits.val, splits.test) for sample in samples]


@pytest.fixture
def saved(library, tmp_path):
    """Save splits as `save_to_disk` does; return the folder."""

    def save(**parts):
        library.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
        return tmp_path / "saved"

    return save


def test_a_folder_of_images(library, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            picture(number).save(tmp_path / "photos" / name / f"{number}.png")
    splits = HuggingFace(tmp_path / "photos").splits()
    assert splits.classes == ("cat", "dog")
    assert counts(splits) == [12, 4, 4]
    shown = {sample.name: decode(sample.image, 8, "nearest")[0, 0, 0] for sample in everything(splits)}
    assert sorted(shown) == [f"train/{row:06d}" for row in range(20)]
    assert sorted(shown.values()) == sorted([*range(10), *range(10)])
    assert not library.utils.are_progress_bars_disabled()


def test_its_own_splits(library, saved):
    folder = saved(train=part(library, 12), validation=part(library, 4), test=part(library, 6))
    splits = HuggingFace(folder).splits()
    assert counts(splits) == [12, 4, 6]
    sample = splits.val[3]
    assert (sample.name, sample.label, sample.orientation) == ("val/000003", 1, 1)
    assert np.array_equal(decode(sample.image, 8, "nearest"), np.full((3, 8, 8), 3))
    assert counts(HuggingFace(folder, train_per_class=3, val_per_class=1, test_per_class=2).splits()) == [6, 2, 4]
    chosen = HuggingFace(folder, splits={"train": "test"}).splits()
    assert len(everything(chosen)) == 6
    swapped = HuggingFace(folder, splits={"train": "train", "test": "validation"}).splits()
    assert counts(swapped) == [10, 2, 4]


def test_the_bytes_of_images_make_the_fingerprint(library, saved):
    splits = HuggingFace(saved(train=part(library, 12))).splits()
    assert splits.fingerprint == fingerprint(everything(splits))
    other = part(library, 12, image=[encoded(row + (row == 5)) for row in range(12)])
    assert HuggingFace(saved(train=other)).splits().fingerprint != splits.fingerprint


def test_threads_read_what_one_reads(library, saved):
    samples = everything(HuggingFace(saved(train=part(library, 60))).splits())
    alone = [sample.image() for sample in samples]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(lambda sample: sample.image(), samples)) == alone


@pytest.mark.parametrize("kind", ["string", "int64"])
def test_labels_without_names(library, saved, kind):
    labels = [(9, 10)[row % 2] if kind == "int64" else ("nine", "ten")[row % 2] for row in range(12)]
    folder = saved(train=part(library, 12, library.Value(kind), label=labels))
    with pytest.raises(InputError, match="has no column of labels that says so: set data.label_column to one of image"):
        HuggingFace(folder).splits()
    assert HuggingFace(folder, label_column="label").splits().classes == (
        ("9", "10") if kind == "int64" else ("nine", "ten")
    )


def test_a_set_in_the_cache_needs_no_network(library, tmp_path, caplog):
    part(library, 20).to_parquet(tmp_path / "flowers.parquet")
    library.load_dataset("parquet", data_files=str(tmp_path / "flowers.parquet"), cache_dir=str(tmp_path / "made"))
    (info,) = (tmp_path / "made").rglob("dataset_info.json")
    # as the library keeps it after a download
    cached = tmp_path / "cache" / "me___flowers" / "default" / "0.0.0" / "0123abcd"
    shutil.copytree(info.parent, cached)
    for file in cached.glob("parquet-*"):
        file.rename(cached / file.name.replace("parquet-", "flowers-"))
    described = (cached / "dataset_info.json").read_text()
    (cached / "dataset_info.json").write_text(
        described.replace('"dataset_name": "parquet"', '"dataset_name": "flowers"')
    )
    for download in (True, False):
        splits = HuggingFace("me/flowers", download=download).splits()
        assert counts(splits) == [12, 4, 4]
    with pytest.raises(InputError, match="data.path=me/flowers cannot be loaded .*for config 'large'"):
        HuggingFace("me/flowers", config="large").splits()
    assert not library.config.HF_HUB_OFFLINE


def test_an_unknown_name_without_a_network_is_one_sentence(library):
    with pytest.raises(InputError, match=r"no/such is neither a folder nor .* \(https.*no network in tests\)"):
        HuggingFace("no/such").splits()
    with pytest.raises(InputError, match=r"nor in the cache of the library \(data.download=false\)"):
        HuggingFace("no/such", download=False).splits()


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["train", "validation"], {}, r"has the splits train, validation: choose those .*test: validation"),
        (["one", "two"], {}, "has the splits one, two"),
        (["train"], {"splits": {"train": "all"}}, "has no split all, but train"),
        (["train"], {"image_column": "label"}, "data.image_column=label is not a column of images: image, label"),
        (["train"], {"label_column": "species"}, "data.label_column=species is not a column of labels: image, label"),
    ],
)
def test_what_does_not_fit_is_one_sentence(library, saved, names, options, message):
    folder = saved(**{name: part(library, 12) for name in names})
    with pytest.raises(InputError, match=message):
        HuggingFace(folder, **options).splits()


def test_images_without_a_label_are_counted(library, saved):
    folder = saved(train=part(library, 12), test=part(library, 4, label=[-1] * 4))
    with pytest.raises(InputError, match="has 4 images without a label"):
        HuggingFace(folder).splits()


def test_a_folder_that_is_no_data_set(library, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="data.path=.*empty cannot be loaded") as caught:
        HuggingFace(tmp_path / "empty").splits()
    assert "\n" not in str(caught.value)


def test_a_row_without_an_image_is_reported_when_it_is_decoded(library, saved):
    folder = saved(train=part(library, 12, image=[None, *(encoded(row) for row in range(11))]))
    empty = next(s for s in everything(HuggingFace(folder).splits()) if s.name == "train/000000")
    with pytest.raises(OSError, match="the row has no image"):
        decode(empty.image, 8, "nearest")
