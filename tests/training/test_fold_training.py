"""Cells with folds: what is held out reaches nothing, and a fold trains as if it were alone."""

import copy

import lightning as L
import pytest
import torch
from torch.nn.functional import cross_entropy

from blockwise.backbone.layers import record_layers
from blockwise.backbone.load import ImageSpec
from blockwise.backbone.stages import rows_of, stage_backbone
from blockwise.data import BlockwiseDataModule, Digits
from blockwise.partition import SegmentPartitioner
from blockwise.recipe.recipe import Recipe
from blockwise.training.cells import Cell
from blockwise.training.module import BlockwiseModule
from blockwise.training.scopes import parse_scopes

SPEC = ImageSpec(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0)
FOLDS = 3


def new_data(change=lambda _: None):
    source = Digits(train_per_class=8, val_per_class=2, test_per_class=5)
    data = BlockwiseDataModule(source, SPEC, batch_size=30, folds=FOLDS)
    data.decode()
    change(data)
    return data


def new_module(network, block="all", recipe=None, folds=FOLDS):
    network = copy.deepcopy(network)
    layers = record_layers(network, torch.zeros(1, 3, 16, 16))
    partition = SegmentPartitioner(num_blocks=3)(layers, network)
    backbone = stage_backbone(network, partition, torch.zeros(2, 3, 16, 16))
    cells = [Cell(scope, lr=1e-2) for scope in parse_scopes(block, len(partition), "mine")]
    options = {"num_classes": 10, "optimizer": torch.optim.AdamW, "recipe": recipe, "folds": folds}
    return BlockwiseModule(backbone, cells, **options)


def fit(module, data, epochs=2, **options):
    off = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, num_sanity_val_steps=0, **off)
    trainer.fit(module, datamodule=data, **options)
    return module


def states(module, cell=-1):
    return [copy.deepcopy(network.trained_state()) for network in module._of_cell(cell)]


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("norm", ["eval", "train"])
def test_what_is_held_out_reaches_neither_weights_nor_statistics(stub, norm):
    def spoil(data):
        held_out = (data._fold_of == 1).nonzero()[0]
        pixels = data._decoded["train"].pixels
        labels = data._decoded["train"].labels
        for position in held_out.tolist():
            pixels[position] = 255 - pixels[position]
            labels[position] = (labels[position] + 1) % 10

    recipe = Recipe(norm=norm)
    kept = states(fit(new_module(stub, "full", recipe), new_data()))
    spoilt = states(fit(new_module(stub, "full", recipe), new_data(spoil)))
    # network 0 trains on all images, network n on those outside fold n - 1
    assert [same(*pair) for pair in zip(kept, spoilt, strict=True)] == [False, False, True, False]


def test_a_cell_alone_is_a_cell_among_others(stub):
    among, alone = fit(new_module(stub), new_data()), fit(new_module(stub, "1"), new_data())
    for one, other in zip(states(among, 2), states(alone, 0), strict=True):
        assert same(one, other)
    assert among.progress[2].history == alone.progress[0].history


def test_the_network_of_all_images_trains_as_without_folds(stub):
    data = new_data()
    folded = fit(new_module(stub, "1"), data)
    plain = fit(new_module(stub, "1", folds=None), data)
    assert same(states(folded)[0], states(plain)[0])


def test_a_fold_is_the_plain_network_trained_on_the_other_images(stub):
    """Against a loop without stages, on the same batches."""
    stub.drop.p = 0.0
    module, data = new_module(stub, "full"), new_data()
    network, head = copy.deepcopy(stub).eval(), copy.deepcopy(module.networks[0].head)
    optimizer = torch.optim.AdamW([*head.parameters(), *network.parameters()], lr=1e-2)
    fit(module, data, epochs=1)
    data.trainer = None
    for batch in data.train_dataloader():
        images, labels, folds = data.on_after_batch_transfer(batch, 0)
        rows = [row for row, fold in enumerate(folds) if fold != 0]
        cross_entropy(head(network(images[rows])), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = states(module)[1]
    for name, parameter in network.named_parameters():
        assert torch.allclose(trained[name], parameter, atol=1e-3), name


def test_validation_is_out_of_fold(stub):
    """Every image is predicted by the network that has not seen it, in the order of the data."""
    module, data = fit(new_module(stub, "full"), new_data(), epochs=1), new_data()
    predicted = module.progress[0].predictions["val"]
    module.eval()
    expected, labels = [], []
    with torch.no_grad():
        for batch in data.val_dataloader():
            images, own, folds = data.on_after_batch_transfer(batch, 0)
            labels += own.tolist()
            for image, fold in zip(images, folds, strict=True):
                network = module.of_folds[0][fold]
                expected.append(int(network(module.backbone, module.backbone.enter(image[None])).argmax()))
    assert predicted["predicted"].tolist() == expected
    assert predicted["label"].tolist() == labels


def test_a_run_that_was_interrupted_goes_on(stub, tmp_path):
    whole = fit(new_module(stub), new_data(), epochs=2)
    first = new_module(stub)
    fit(first, new_data(), epochs=1)
    first.trainer.save_checkpoint(tmp_path / "one.ckpt")
    rest = new_module(stub)
    fit(rest, new_data(), epochs=2, ckpt_path=tmp_path / "one.ckpt")
    for index in range(len(whole.cells)):
        for one, other in zip(states(whole, index), states(rest, index), strict=True):
            assert same(one, other)
        assert whole.progress[index].history == rest.progress[index].history


def test_a_batch_that_is_all_held_out_trains_nothing(stub):
    module, data = new_module(stub, "full"), new_data()
    fit(module, data, epochs=1)
    before = states(module)
    images, labels, _ = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    module.training_step((images, labels, [0] * len(labels)), 0)
    assert [same(*pair) for pair in zip(before, states(module), strict=True)] == [False, True, False, False]


def test_rows_of_a_batch_are_told_from_what_only_looks_like_them(stub):
    """A value with as many rows as the batch has images, such as a weight, is not divided."""
    module = new_module(stub, "full")
    per_image = module.backbone.per_image(torch.randn(2, 3, 16, 16))
    images = torch.randn(8, 3, 16, 16)
    rows = torch.tensor([5, 1])
    for boundary, activations in module.backbone.boundaries(images, set(range(len(module.backbone) + 1))):
        chosen = rows_of({**activations, "weight": torch.ones(8), "side": 8}, rows, per_image)
        assert len(chosen["weight"]) == chosen["side"] == 8
        counts = rows_of({"count": 8, "shape": torch.Size((8, 3))}, rows, {"count", "shape"})
        assert counts == {"count": 2, "shape": (2, 3)}
        ((_, expected),) = module.backbone.boundaries(images[rows], {boundary})
        for name, value in expected.items():
            assert torch.allclose(chosen[name], value, atol=1e-5)
