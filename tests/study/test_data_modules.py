"""`data=module`: any LightningDataModule, from the command line."""

import lightning as L
import pytest
import torch
from conftest import SMALL, quick_config
from omegaconf import open_dict
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from blockwise.config.compose import plain
from blockwise.errors import InputError, Interrupted
from blockwise.results.finished import run_key
from blockwise.study.run import run
from blockwise.study.study import Study


class Labels(Dataset):
    """Images whose pixels tell their index."""

    def __init__(self, classes, size):
        self.classes, self.size = classes, size

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.full((3, self.size, self.size), index / 24), index % self.classes


class Module(L.LightningDataModule):
    """A data module as people write them; it notes the order in which the images arrive."""

    drawn = ()

    def __init__(self, size=32, number=2, batch_size=8, *, shuffle=True, workers=0, root=None):
        super().__init__()
        self.save_hyperparameters()
        Module.drawn = []

    def setup(self, stage=None):
        self.data = Labels(self.hparams.number, self.hparams.size)

    def train_dataloader(self):
        options = {"shuffle": self.hparams.shuffle, "num_workers": self.hparams.workers}
        return DataLoader(self.data, self.hparams.batch_size, **options)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        if self.trainer is not None and self.trainer.training:
            Module.drawn += [round(24 * image.flatten()[0].item()) for image in batch[0]]
        return batch

    def val_dataloader(self):
        return DataLoader(TensorDataset(*self._rest()), 8)

    test_dataloader = val_dataloader

    def _rest(self):
        return torch.zeros(8, 3, self.hparams.size, self.hparams.size), torch.arange(8) % self.hparams.number


class Named(Module):
    classes = ("cat", "dog")


class WithoutTest(L.LightningDataModule):
    num_classes = 2

    def train_dataloader(self):
        return None

    val_dataloader = train_dataloader


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(3, 32, 32), 0)] * 16)


class Endless(Module):
    """Its training images have no length."""

    num_classes = 2

    def train_dataloader(self):
        return DataLoader(Stream(), 8)


class NoData:
    pass


@pytest.fixture
def compose(tmp_path):
    def made(target=Module, *overrides):
        name = target if isinstance(target, str) else f"{__name__}.{target.__qualname__}"
        small = [override for override in SMALL if not override.startswith("data")]
        places = [f"results_dir={tmp_path / 'results'}", "partition.num_blocks=2", "data.image_size=32"]
        return quick_config([*small, "data=module", f"data.source._target_={name}", *places, *overrides])

    return made


def test_cells_train_and_are_found_again(compose, console):
    cfg = compose(Module, "data.num_classes=2", "data.name=mine", "block=[head,1]", "+data.source.batch_size=4")
    records = run(cfg, console)
    assert [record.cell.scope for record in records] == ["head", "1"]
    assert records[0]["data"] == {
        "name": "mine", "classes": 2, "image_size": 32, "train": 24, "val": 8, "test": 8, "skipped": []
    }  # fmt: skip
    assert run(cfg, console) == records
    assert "2 cells, 2 of them already recorded" in " ".join(console.export_text().split())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_the_order_of_images_depends_on_seed_and_epoch(compose, console, workers):
    orders = {}
    for seed in (0, 1):
        for scopes in ("head", "[head,1]"):
            torch.manual_seed(len(scopes))  # what was drawn before does not matter
            own = ["data.num_classes=2", f"block={scopes}", f"seed={seed}", f"+data.source.workers={workers}"]
            run(compose(Module, *own), console)
            orders[seed, scopes] = Module.drawn[:24], Module.drawn[24:]
    assert orders[0, "head"] == orders[0, "[head,1]"]
    assert orders[0, "head"][0] != orders[1, "head"][0]
    first, second = orders[0, "head"]
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_resumed_epoch_has_the_order_of_an_unbroken_run(compose, console, stop_at, monkeypatch, tmp_path, workers):
    overrides = ["data.num_classes=2", "block=head", "trainer.max_epochs=3", f"+data.source.workers={workers}"]
    run(compose(Module, *overrides, f"results_dir={tmp_path / 'unbroken'}"), console)
    unbroken = Module.drawn
    stop_at(4)  # the last step of the first epoch
    with pytest.raises(Interrupted):
        run(compose(Module, *overrides), console)
    monkeypatch.undo()
    run(compose(Module, *overrides), console)
    assert Module.drawn == unbroken[24:]


class Random(Module):
    """Validates in another order in each epoch, and draws augmentation from PyTorch's generator."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch

    def train_dataloader(self):
        images = torch.arange(24) % 2, torch.zeros(24, 3, 32, 32)
        return DataLoader(
            TensorDataset(*images),
            8,
            collate_fn=lambda rows: (torch.rand(len(rows), 3, 32, 32), torch.stack([row[0] for row in rows])),
        )

    def val_dataloader(self):
        labels = torch.arange(32) % 2
        noise = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        images = labels[:, None, None, None].float().expand(-1, 3, 32, 32) + noise
        return DataLoader(TensorDataset(images, labels), 8, shuffle=True)

    test_dataloader = val_dataloader


def test_validation_batches_that_change_are_not_taken_from_a_cache(compose, console, tmp_path):
    own = ["data.num_classes=2", "block=head", "trainer.max_epochs=3", "optimizer.lr=0.01"]
    kept, computed = (
        run(compose(Random, *own, f"cache.activations_gb={gb}", f"results_dir={tmp_path / str(gb)}"), console)[0]
        for gb in (1, 0)
    )
    assert kept["metrics"] == computed["metrics"]


def test_random_transforms_do_not_depend_on_the_cells_beside(compose, console, tmp_path):
    own = ["data.num_classes=2", "trainer.max_epochs=2", "model.options={drop_path_rate: 0.5}"]
    alone, among = (
        run(compose(Random, *own, f"block={scopes}", f"results_dir={tmp_path / str(len(scopes))}"), console)[-1]
        for scopes in ("full", "[head,full]")
    )
    assert alone["metrics"]["train"] == among["metrics"]["train"]


def test_several_devices_do_not_share_its_batches(compose, console):
    cfg = compose(Module, "data.num_classes=2", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    with pytest.raises(InputError, match="trainer=ddp shares batches of images that blockwise reads itself"):
        run(cfg, console)


def settings(cfg, console):
    return Study.from_config(cfg, console).settings


@pytest.mark.parametrize(
    "override", ["data.version=2", "data.classes=[cat,dog]", "+data.source.batch_size=4", "+data.source.root=x"]
)
def test_what_is_known_of_the_data_is_part_of_the_hash(compose, console, override):
    default = settings(compose(Module, "data.num_classes=2"), console)
    assert settings(compose(Module, "data.num_classes=2", override), console) != default
    assert settings(compose(Module, "data.num_classes=2", "block=head"), console) == default


def test_classes_come_from_settings_or_from_the_module(compose, console, tmp_path):
    def classes(target, *overrides):
        return Study.from_config(compose(target, *overrides), console).data.classes

    assert classes(Module, "data.num_classes=2") == ("0", "1")
    assert classes(Module, "data.classes=[a,b]") == ("a", "b")
    assert classes(Named) == ("cat", "dog")
    assert classes(Named, "data.classes=[a,b]") == ("a", "b")
    (tmp_path / "names.txt").write_text("x\ny\n")
    assert classes(Module, "data.num_classes=2", f"data.classes={tmp_path / 'names.txt'}") == ("x", "y")


def test_its_images_may_change_so_nothing_is_recalled(compose):
    assert run_key(plain(compose(Module))) is None
    assert run_key(plain(compose("lightning.pytorch.demos.mnist_datamodule.MNISTDataModule"))) is None


def test_a_plan_needs_no_training(compose, console):
    plans, costs = Study.from_config(compose(Module, "data.num_classes=2", "block=[head,full]"), console).plan()
    assert len(plans) == 2
    assert costs.seconds > 0


@pytest.mark.parametrize(
    ("target", "overrides", "message"),
    [
        ("???", [], "data.source._target_ is missing: set data.source._target_=<value>"),
        (f"{__name__}.Modul", [], r"data.source: there is no .*Modul. Did you mean 'Module'\?"),
        ("nowhere.Module", [], r"data.source: there is no nowhere.Module \(No module named 'nowhere'\)"),
        (Module, ["+data.source.sise=3"], r"Module refuses its options \(.*sise"),
        (NoData, [], "NoData is neither a LightningDataModule nor a Source"),
        (WithoutTest, [], "data lacks test: train, val and test are required"),
        (Module, [], "data.num_classes is missing: Module has no attribute num_classes"),
        (Module, ["data.num_classes=2", "loss.class_weights=balanced"], "balanced needs to know the training images"),
        (Module, ["data.num_classes=1"], "data.num_classes=1 must be an integer of at least 2"),
        (Module, ["data.classes=[a]"], "data.num_classes=1 must be at least 2"),
        (Named, ["data.num_classes=3"], r"has 2 names for 3 classes"),
        (Endless, [], "loaders need a length"),
        (Endless, ["scheduler=cosine"], "loaders need a length"),
        (Module, ["data.num_classes=2", "+data.source.size=16"], r"train images must be .* \(batch, 3, 32, 32\), not"),
        (Module, ["data.num_classes=2", "+data.source.number=3"], "labels must be between 0 and 1 for 2 classes"),
    ],
)
def test_what_does_not_fit_is_one_sentence(compose, console, target, overrides, message):
    with pytest.raises(InputError, match=message) as caught:
        run(compose(target, "block=head", *overrides), console)
    assert "\n" not in str(caught.value)


def test_a_file_of_a_data_set_that_lacks_settings_of_batches_is_told(small, console):
    cfg = quick_config([*SMALL])
    with open_dict(cfg.data):
        del cfg.data["batch_size"]
    with pytest.raises(InputError, match="data.batch_size is missing: begin the file of the data set with"):
        Study.from_config(cfg, console)
