"""The main guarantees of training, checked on the results of runs with a tiny network."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from blockwise.backbone.load import load_backbone
from blockwise.backbone.stages import CannotStageError
from blockwise.config.compose import plain
from blockwise.errors import InputError
from blockwise.fast.fusion import fusion_for
from blockwise.recipe import Recipe
from blockwise.results import METRICS
from blockwise.results.finished import recall_finished
from blockwise.results.store import settings_hash
from blockwise.study.run import run
from blockwise.study.study import Study
from blockwise.training.cells import Cell
from blockwise.training.module import BlockwiseModule


def folder_of(cfg, record):
    """Return the folder of a record."""
    (found,) = (
        path.parent
        for path in Path(cfg.results_dir).rglob("record.json")
        if json.loads(path.read_text())["settings"] == record["settings"]
    )
    return found


def weights_of(cfg, record):
    return load_file(folder_of(cfg, record) / "weights.safetensors")


# test_efficientnet has depthwise convolutions and clipping activations; test_resnet has residuals
@pytest.mark.parametrize(
    ("precision", "model", "compared"),
    [
        ("32-true", "test_resnet", ["1", "full"]),
        pytest.param("32-true", "test_resnet", ["head", "from1"], marks=pytest.mark.slow),
        pytest.param("32-true", "test_efficientnet", ["0", "0+2"], marks=pytest.mark.slow),
        ("bf16-mixed", "test_efficientnet", ["1"]),
    ],
)
def test_alone_equals_among_bit_for_bit(small, console, tmp_path, precision, model, compared):
    """Weights, metrics and history of a cell depend neither on other cells in the run nor on the number of workers."""
    norm = "train" if model == "test_efficientnet" else "eval"
    options = (
        f"trainer.precision={precision}",
        f"model.name={model}",
        "early_stopping.patience=1",
        f"freeze.norm={norm}",
    )
    together = small("block=[all,0+2,from1]", *options, "trainer.max_epochs=3")
    among = {record["cell"]["scope"]: record for record in run(together, console)}
    assert list(among) == ["head", "0", "1", "2", "full", "0+2", "from1"]
    for scope in compared:
        record = among[scope]
        alone = small(
            f"block={scope}",
            *options,
            "trainer.max_epochs=3",
            f"data.num_workers={len(scope) // 4}",  # 1 for `head` and others, 0 for a block
            f"results_dir={tmp_path / 'alone'}",
        )
        (single,) = run(alone, console)
        assert single["metrics"] == record["metrics"]
        assert single["best_epoch"] == record["best_epoch"]
        assert single["settings"] == record["settings"]
        mine, theirs = weights_of(alone, single), weights_of(together, record)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        histories = [(folder_of(c, r) / "history.csv").read_text() for c, r in ((alone, single), (together, record))]
        assert histories[0] == histories[1]


def test_norms_of_trained_blocks_use_batch_statistics_if_asked_to(small, console):
    """Lightning calls `train()` on no module, so this must come from blockwise."""
    network = load_backbone(small().model, image_size=32, seed=0).network
    for norm in ("eval", "train"):
        (record,) = run(small("block=1", f"freeze.norm={norm}"), console)
        weights = weights_of(small(), record)
        means = [name for name in weights if name.endswith("running_mean")]
        assert means
        assert all(torch.equal(weights[name], network.state_dict()[name]) == (norm == "eval") for name in means)


def test_records_of_the_first_versions_are_those_of_norms_in_inference_mode(small, console):
    """They say `train`, which had no effect."""
    cfg = small("block=head")
    (record,) = run(cfg, console)
    folder = Path(record.folder)
    content = json.loads((folder / "record.json").read_text())
    content["settings"]["freeze"] = {"norm": "train"}
    old = folder.parent / f"seed0-{settings_hash(content['settings'])}"
    folder.rename(old)
    (old / "record.json").write_text(json.dumps(content))
    (again,) = run(cfg, console)
    assert again.folder == str(old)
    assert again.settings == record.settings
    (other,) = run(small("block=head", "freeze.norm=train"), console)
    assert other.folder != str(old)


@pytest.mark.slow
def test_dropout_draws_the_same_numbers_alone_and_among(small, console, tmp_path):
    options = ("model.name=test_vit", "data.image_size=160", "trainer.max_epochs=1")
    together, alone = small("block=[1,2]", *options), small("block=1", *options, f"results_dir={tmp_path / 'alone'}")
    among = {record["cell"]["scope"]: record for record in run(together, console)}
    (single,) = run(alone, console)
    mine, theirs = weights_of(alone, single), weights_of(together, among["1"])
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_is_frozen_is_bit_identical_after_training(small, console):
    cfg = small("block=[all,0+2]")
    prepared = Study.from_config(cfg, console)
    before = {name: tensor.clone() for name, tensor in prepared.staged.stages.state_dict().items()}
    prepared.train()
    after = prepared.staged.stages.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    ran = prepared.staged.frozen.state_dict()
    prepared.staged.freeze(fuse=fusion_for(torch.device("cpu")))  # rebuild from the unchanged stages
    fresh = prepared.staged.frozen.state_dict()
    assert fresh.keys() == ran.keys()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in ran.items())


def test_stored_weights_rebuild_the_tested_network(small, console):
    """The frozen backbone with the cell's stored weights has the recorded test accuracy."""
    cfg = small("block=1")
    (record,) = run(cfg, console)
    again = Study.from_config(cfg, console)
    again.data.module.decode()
    state = weights_of(cfg, record)
    network = load_backbone(cfg.model, image_size=32, seed=0).network.eval()
    own = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    assert set(own) <= set(network.state_dict())
    network.load_state_dict(own, strict=False)
    right = total = 0
    with torch.no_grad():
        for batch in again.data.module.test_dataloader():
            images, labels = again.data.module.on_after_batch_transfer(batch, 0)
            logits = torch.nn.functional.linear(network(images), state["head.weight"], state["head.bias"])
            right += int((logits.argmax(1) == labels).sum())
            total += len(labels)
    assert total == record["data"]["test"]
    assert right / total == pytest.approx(record["metrics"]["test"]["top1"])


def test_the_record_follows_the_schema(small, console):
    head, block = run(small("block=[head,-1]"), console)
    assert block["schema"] == 1
    assert block["status"] == "finished"
    assert set(block["backbone"]) == {"name", "weights", "parameters", "checksum"}
    assert block["backbone"]["weights"] == "random"
    counts = {"train": 50, "val": 30, "test": 50, "skipped": []}
    assert block["data"] == {"name": "digits", "classes": 10, "image_size": 32, **counts}
    assert block["partition"] == {"name": "unit", "num_blocks": 3}
    cell = block["cell"]
    assert (cell["scope"], cell["blocks"], cell["quarter"]) == ("2", [2], 4)
    assert isinstance(cell["first_layer"], str)
    assert head["cell"]["quarter"] is None
    assert head["cell"]["trainable_parameters"] < cell["trainable_parameters"] < block["backbone"]["parameters"] * 2
    for split in ("train", "val", "test"):
        assert tuple(block["metrics"][split]) == METRICS
        assert 0 <= block["metrics"][split]["top1"] <= 1
    assert block["epochs"] == 2
    assert block["seconds"] > 0
    assert block["peak_memory_bytes"] > 1e6
    assert set(block["provenance"]) == {"finished", "commit", "dirty", "versions", "command"}
    assert block["settings"]["optimizer"]["weight_decay"] == 0.01


def test_finished_cells_are_skipped_and_only_missing_ones_train(small, console, monkeypatch):
    first = run(small("block=[head,0]"), console)
    trained = []
    original = BlockwiseModule.configure_optimizers
    monkeypatch.setattr(
        BlockwiseModule, "configure_optimizers", lambda self: (trained.extend(self.cells), original(self))[1]
    )
    records = run(small("block=[head,0,1]", "data.num_workers=1"), console)
    assert [cell.scope.name for cell in trained] == ["1"]
    assert records[:2] == first
    (folder_of(small(), records[0]) / "record.json").unlink()  # as a crash would leave it
    run(small("block=[head,0,1]"), console)
    assert [cell.scope.name for cell in trained] == ["1", "head"]
    run(small("block=head", "optimizer.weight_decay=0"), console)  # changes the result, so the cell trains
    assert len(trained) == 3


@pytest.mark.slow
def test_seeds_belong_to_one_sweep_though_their_splits_differ(small, console):
    for seed in (0, 1):
        run(small("block=[head,0]", f"seed={seed}"), console)
    sweep = Study.from_config(small("block=head"), console).sweep(all_seeds=True)
    assert [len(row.records) for row in sweep.rows] == [2, 2]
    assert "±" in console.export_text()


def test_skipped_images_are_named_and_recorded(small, console, tmp_path):
    for name in ("x", "y"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (40, 40), (25 * i, 0, 0)).save(tmp_path / "images" / name / f"{i}.png")
    broken = tmp_path / "images" / "x" / "3.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    options = ["data=imagefolder", f"data.root={tmp_path / 'images'}", "data.image_size=32", "data.batch_size=4"]
    cfg = small(*options, "block=head")
    with pytest.raises(InputError, match=r"1 image\(s\) cannot be read: x/3.png"):
        run(cfg, console)
    cfg = small(*options, "block=head", "data.skip_broken=true")
    (record,) = run(cfg, console)
    assert record["data"]["skipped"] == ["x/3.png"]
    assert sum(record["data"][split] for split in ("train", "val", "test")) == 19
    assert "skipping images that cannot be read: x/3.png" in console.export_text()
    broken.write_bytes(whole)  # the repaired image changes the hash of the data
    (record,) = run(cfg, console)
    assert record["data"]["skipped"] == []


def test_turned_images_are_told_once(small, console, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    for name in ("x", "y"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            image = Image.new("RGB", (40, 30), (25 * i, 0, 0))
            image.save(tmp_path / "images" / name / f"{i}.png", **({"exif": exif} if i < 3 else {}))
    options = ["data=imagefolder", f"data.root={tmp_path / 'images'}", "data.image_size=32", "data.batch_size=4"]
    run(small(*options, "block=[all,top2]"), console)
    assert console.export_text().count("6 images are turned upright, as the EXIF orientation says") == 1


def test_a_trainer_setting_that_shortens_training_is_another_result(small, console):
    short = small("block=head", "+trainer.limit_train_batches=1")
    assert run(short, console)[0]["settings"] != run(small("block=head"), console)[0]["settings"]


def test_learning_rates_train_side_by_side(small, console):
    records = run(small("block=[head,0]", "optimizer.lr=[1e-4,1e-2]", "optimizer.block_lr=1e-5"), console)
    assert [(r["cell"]["scope"], r["settings"]["lr"]) for r in records] == [
        ("head", 1e-4),
        ("head", 1e-2),
        ("0", 1e-4),
        ("0", 1e-2),
    ]
    assert "rate" in console.export_text()


def test_block_lr_is_the_blocks_rate_alone(small, console):
    prepared = Study.from_config(small("block=0"), console)
    (cell,) = (Cell(scope, 1e-2) for scope in prepared.scopes)
    module = BlockwiseModule(prepared.staged, [cell], 10, torch.optim.AdamW, Recipe(block_lr=1e-5))
    (optimizer,) = module.configure_optimizers()
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-5]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(
        p.requires_grad for p in module.parameters()
    )


def test_a_cell_that_diverges_is_recorded_and_disturbs_no_other(small, console, tmp_path):
    records = run(small("block=[head,full]", "optimizer.lr=[1e-3,1e30]", "optimizer=sgd"), console)
    status = {(r["cell"]["scope"], r["settings"]["lr"]): r["status"] for r in records}
    assert status == {("head", 1e-3): "finished", ("head", 1e30): "diverged"} | {
        ("full", 1e-3): "finished",
        ("full", 1e30): "diverged",
    }
    diverged = next(r for r in records if r["status"] == "diverged")
    assert diverged["metrics"] == {"train": None, "val": None, "test": None}
    calm = run(small("block=[head,full]", "optimizer.lr=1e-3", "optimizer=sgd", f"results_dir={tmp_path}"), console)
    assert [r["metrics"] for r in calm] == [r["metrics"] for r in records if r["status"] == "finished"]


def test_a_cell_without_a_number_for_a_test_image_is_recorded_as_diverged(small, console, monkeypatch, tmp_path):
    evaluate = BlockwiseModule._run

    def overflowing(self, kind, *given):
        for (cell, network), logits in evaluate(self, kind, *given):
            yield (cell, network), logits * math.nan if (kind, cell) == ("test", 0) else logits

    monkeypatch.setattr(BlockwiseModule, "_run", overflowing)
    head, last = run(small("block=[head,2]", f"results_dir={tmp_path / 'among'}"), console)
    assert (head["status"], head["metrics"]["test"], last["status"]) == ("diverged", None, "finished")


def test_all_diverged_still_leaves_a_table(small, console):
    (record,) = run(small("block=head", "optimizer.lr=1e30", "optimizer=sgd"), console)
    assert record["status"] == "diverged"
    assert "diverged" in console.export_text()


def test_early_stopping_stops_a_cell_not_the_others(small, console):
    cfg = small("block=all", "optimizer.lr=[1e-3,1e-1]", "early_stopping.patience=1", "trainer.max_epochs=6")
    records = run(cfg, console)
    epochs = {record["epochs"] for record in records}
    assert min(epochs) < 6
    assert len(epochs) > 1
    assert all(r["epochs"] in (6, r["best_epoch"] + 2) for r in records)


@pytest.mark.slow
def test_top_trains_the_best_single_blocks_together(small, console):
    records = run(small("block=[all,top2]"), console)
    single = [record for record in records if record["cell"]["scope"].isdigit()]
    val = {r["cell"]["blocks"][0]: r["metrics"]["val"] for r in single}
    best = sorted(val, key=lambda block: (val[block]["top1"], -val[block]["loss"], block))[-2:]
    assert records[-1]["cell"]["scope"] == "top2"
    assert records[-1]["cell"]["blocks"] == sorted(best)
    # the scope can also be resolved from existing records
    assert run(small("block=top2"), console) == records[-1:]


def test_a_run_that_chose_among_blocks_is_not_known_to_be_finished(small, console):
    """Another run may add a block to the sweep, which changes the choice."""
    cfg = small("block=[0,1,top2]", "trainer.max_epochs=1")
    run(cfg, console)
    assert recall_finished(plain(cfg)) is None
    cfg = small("block=[0,1]", "trainer.max_epochs=1")
    run(cfg, console)
    assert recall_finished(plain(cfg)) is not None


def test_top_without_single_blocks_is_refused(small, console):
    with pytest.raises(InputError, match=r"block=top2 needs 2 single blocks to choose from, but this sweep has 1"):
        run(small("block=[0,top2]"), console)


def test_top_of_blocks_that_diverged_is_told_after_the_rest_is_reported(small, console):
    cfg = small("block=[head,0,1,top2]", "optimizer.lr=1e30", "optimizer=sgd", "trainer.max_epochs=1")
    with pytest.raises(InputError, match="this sweep has 0: the others diverged"):
        run(cfg, console)
    assert console.export_text().count("diverged") >= 3  # the table


@pytest.mark.parametrize("partition", ["layer", "window", "stage", "even", "segment"])
def test_every_partitioner_trains(small, console, partition):
    options = {"window": ["partition.length=3", "partition.stride=2"], "layer": [], "stage": []}
    overrides = options.get(partition, ["partition.num_blocks=2"])
    cfg = small("trainer.max_epochs=1", "block=[head,0,-1]", f"partition={partition}", *overrides)
    assert [r["status"] for r in run(cfg, console)] == ["finished"] * 3


@pytest.mark.slow
def test_a_network_that_cannot_be_cut_trains_one_cell_at_a_time(small, console, monkeypatch, tmp_path):
    staged = {r["cell"]["scope"]: r for r in run(small("block=[head,1,full]"), console)}

    def refuse(*_):
        raise CannotStageError("it branches on its input")

    monkeypatch.setattr("blockwise.study.prepare.stage_backbone", refuse)
    cfg = small("block=[head,1,full]", f"results_dir={tmp_path / 'whole'}")
    whole = {r["cell"]["scope"]: r for r in run(cfg, console)}
    assert "cannot be cut into stages (it branches on its input)" in console.export_text()
    for scope, record in staged.items():
        assert whole[scope]["cell"] == record["cell"]
        assert math.isclose(whole[scope]["metrics"]["val"]["loss"], record["metrics"]["val"]["loss"], rel_tol=1e-5)


@pytest.mark.slow
@pytest.mark.data
def test_real_weights_and_photographs(small, console, photographs, tmp_path):
    cfg = study_on_photographs(photographs, tmp_path)
    records = run(cfg, console)
    best = max(record["metrics"]["test"]["top1"] for record in records)
    assert best > 0.5  # far above chance with 101 classes, so the pretrained features are used
    assert records[0]["data"]["train"] == 202


def study_on_photographs(photographs, tmp_path):
    from blockwise.config.compose import compose_config

    return compose_config(
        [
            "model=efficientnet_lite0",
            "data=caltech101",
            f"data.root={photographs}",
            "data.image_size=96",
            "data.train_per_class=3",
            "data.val_per_class=1",
            "data.test_per_class=1",
            "block=[head,11]",
            "trainer.max_epochs=3",
            "trainer.accelerator=cpu",
            f"results_dir={tmp_path}",
        ]
    )


@pytest.mark.slow
def test_if_the_memory_of_a_gpu_runs_out_half_of_the_cells_train_at_a_time(
    small, console, monkeypatch, tmp_path_factory
):
    expected = {
        r.cell.scope: r.metrics
        for r in run(small("block=[head,0,1,2,full]", f"results_dir={tmp_path_factory.mktemp('apart')}"), console)
    }
    step = BlockwiseModule.training_step
    together = []

    def hungry(self, batch, batch_idx):
        together.append(len(self.cells))
        if len(self.cells) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")
        step(self, batch, batch_idx)

    monkeypatch.setattr(BlockwiseModule, "training_step", hungry)
    records = run(small("block=[head,0,1,2,full]"), console)
    assert {r.cell.scope: r.metrics for r in records} == expected
    assert list(dict.fromkeys(together)) == [5, 3, 2, 1]
    told = " ".join(console.export_text().split())
    assert "memory ran out with 5 cells side by side: training 3 at a time" in told
    assert "sweeper.cells_per_job=3" in told


def test_a_single_cell_that_does_not_fit_is_an_input_error(small, console, monkeypatch):
    def hungry(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(BlockwiseModule, "training_step", hungry)
    with pytest.raises(InputError, match=r"ran out with 1 cell: choose a smaller data.batch_size or smaller images"):
        run(small("block=0"), console)
