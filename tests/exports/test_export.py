"""An exported network computes what the cell computed, in a process that has no blockwise."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from conftest import SMALL, quick_config
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blockwise import fine_tuned, load_backbone, make_partition, train_scopes
from blockwise.analysis.frame import records_frame
from blockwise.cli import main
from blockwise.config.compose import CONFIG_DIR
from blockwise.errors import InputError
from blockwise.exports.base import base_of, config_of
from blockwise.exports.choose import choose
from blockwise.exports.folder import read_export
from blockwise.exports.images import read_images
from blockwise.exports.use.evaluate import evaluate
from blockwise.exports.use.explain import grad_cam
from blockwise.exports.use.positions import Positions
from blockwise.exports.use.predict import predict
from blockwise.exports.use.push import check_repository, push_to_hub
from blockwise.exports.verify import PROGRAMS, TOLERANCE
from blockwise.exports.write import export
from blockwise.results import read_records
from blockwise.study.run import run

SWEEP = ["partition.num_blocks=3", "optimizer.lr=[0.001,0.01]"]


def command(*overrides):
    return f"python train.py {' '.join(overrides)}"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    overrides = [*SMALL, *SWEEP, "block=[head,0,2,0+2,full,norms,lora2]", f"results_dir={folder}"]
    run(quick_config(overrides), Console(quiet=True))
    # in a test, the command is that of pytest
    words = command(*overrides)
    return [replace(r, provenance={**r.provenance, "command": words}) for r in read_records(folder)]


@pytest.fixture(scope="module")
def exported(records, tmp_path_factory):
    return export(choose(records), tmp_path_factory.mktemp("exported") / "timm").folder


def logits_of(record, images):
    with torch.no_grad():
        return fine_tuned(base_of(record), record)(images)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("scope", ["best", *map(slow, ("head", "0+2", "full", "norms", "lora2"))])
def test_timm_loads_it(records, exported, tmp_path, scope):
    record = choose(records, scope=scope)
    folder = exported if scope == "best" else export(record, tmp_path / "out").folder
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(images), logits_of(record, images), rtol=1e-4, atol=1e-4)
    by_path = timm.create_model("test_resnet", num_classes=10, checkpoint_path=str(folder / "model.safetensors")).eval()
    with torch.no_grad():
        torch.testing.assert_close(by_path(images), network(images))


@pytest.mark.parametrize("kind", ["onnx", slow("torch_export")])
def test_other_formats_take_batches_of_any_size(records, tmp_path, kind):
    pytest.importorskip("onnxscript" if kind == "onnx" else "torch")
    record = choose(records)
    done = export(record, tmp_path / "out", format=kind)
    assert done.photographs
    assert done.difference <= TOLERANCE
    for size in (1, 5):
        images = torch.randn(size, 3, 32, 32)
        if kind == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(done.folder / "model.onnx"))
            logits = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        else:
            logits = torch.export.load(done.folder / "model.pt2").module()(images)
        torch.testing.assert_close(logits, logits_of(record, images), rtol=1e-4, atol=1e-4)


def test_a_delta_fits_its_own_base_alone(records, tmp_path):
    record = choose(records, scope="0")
    folder = export(record, tmp_path / "delta", format="delta").folder
    base = base_of(record)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(fine_tuned(base, folder)(images), fine_tuned(base, record)(images))
    other = load_backbone("timm:test_resnet", pretrained=False, image_size=32, seed=5)
    with pytest.raises(InputError, match="whose tensors differ"):
        fine_tuned(other, folder)
    with pytest.raises(InputError, match="whose tensors differ"):
        predict(folder, [photograph(tmp_path)], overrides=["seed=5"])


def python_record(backbone, folder):
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 2
    loaders = dict.fromkeys(("train", "val", "test"), DataLoader(TensorDataset(images, labels), batch_size=8))
    options = {"max_epochs": 1, "accelerator": "cpu", "quiet": True, "classes": ["cat", "dog"]}
    partition = make_partition(backbone, num_blocks=2)
    (record,) = train_scopes(backbone, partition, "0", loaders, results_dir=folder, **options)
    return record


def test_options_from_python_are_those_of_the_export(tmp_path):
    options = {"act_layer": "tanh"}
    load = partial(load_backbone, "timm:test_resnet", pretrained=False, image_size=32)
    record = python_record(load(options=options), tmp_path / "results")
    assert base_of(record).settings["options"] == options
    # the same weights, but another network
    with pytest.raises(InputError, match=r'with model.options=\{"act_layer": "tanh"\}, but this backbone has \{\}'):
        fine_tuned(load(), record)


def test_a_network_of_your_own_is_exported_if_it_is_given(tmp_path):
    own = load_backbone(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten()), name="mine", image_size=32
    )
    record = python_record(own, tmp_path / "results")
    done = export(record, tmp_path / "out", format="torch_export", backbone=own)
    images = torch.randn(3, 3, 32, 32)
    loaded = torch.export.load(done.folder / "model.pt2").module()
    torch.testing.assert_close(loaded(images), fine_tuned(own, record)(images))
    with pytest.raises(InputError, match="mine is a network of your own: export it with backbone="):
        export(record, tmp_path / "other", format="torch_export")
    with pytest.raises(InputError, match="mine is not in timm: choose --format onnx or torch_export"):
        export(record, tmp_path / "other", backbone=own)


@pytest.mark.parametrize("kind", ["delta", *map(slow, ("timm", "onnx", "torch_export"))])
def test_the_metrics_are_those_of_the_record(records, tmp_path, kind):
    pytest.importorskip("onnxscript" if kind == "onnx" else "torch")
    record = choose(records)
    folder = export(record, tmp_path / "out", format=kind).folder
    found = evaluate(folder)
    assert found.images == record.data.test
    assert found.same_images
    assert found.metrics == pytest.approx(record.metrics.test, abs=1e-4)


@pytest.mark.slow
def test_the_card_tells_the_record_and_its_code_runs(records, exported, tmp_path):
    record = choose(records)
    text = (exported / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["model-index"][0]["results"][0]["metrics"][0]["value"] == pytest.approx(record.score("test"))
    assert f"{100 * record.score('test'):.1f}" in text
    assert record.backbone.checksum in text
    code = "".join(re.findall(r"```python\n(.+?)```", text, re.DOTALL))
    image = photograph(exported.parent)
    code = code.replace("local-dir:.", f"local-dir:{exported}").replace("photograph.jpg", str(image))
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    (prediction,) = predict(exported, [image])
    assert done.stdout.strip() == prediction.classes[0]


def test_the_card_prepares_images_as_training_does(exported, tmp_path):
    code = re.search(r"```python\n(.+?)```", (exported / "README.md").read_text(), re.DOTALL)[1]
    scope = {}
    exec(code, scope)
    (image,), _ = read_images([photograph(tmp_path)], read_export(exported).images)
    torch.testing.assert_close(torch.from_numpy(scope["prepare"](tmp_path / "image.png")), image, rtol=0, atol=1e-6)


def photograph(folder, name="image.png", seed=0):
    torch.manual_seed(seed)
    path = Path(folder) / name
    Image.fromarray(torch.randint(0, 255, (40, 50, 3), dtype=torch.uint8).numpy()).save(path)
    return path


def test_predict_prints_tables_json_and_csv_and_names_broken_images(exported, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    photograph(folder, "b.png"), photograph(folder, "a.png", 1)
    (folder / "._a.png").write_bytes(b"macOS leaves these")
    main(["predict", str(exported), str(folder), "--json", "--top", "3"])
    found = json.loads(capsys.readouterr().out)
    assert [Path(one["image"]).name for one in found] == ["a.png", "b.png"]
    assert [len(one["predictions"]) for one in found] == [3, 3]
    shares = [entry["probability"] for entry in found[0]["predictions"]]
    assert shares == sorted(shares, reverse=True)
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "moved.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(SystemExit) as code:
        main(["predict", str(exported), str(folder), "--csv"])
    assert code.value.code == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert "skipped" in err
    assert "broken.png" in err
    assert "moved.png" in err


def test_evaluate_prints_the_record_beside_the_export(records, exported, capsys):
    main(["evaluate", str(exported), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == pytest.approx(found["record"], abs=1e-4)


def test_an_export_replaces_an_earlier_one_and_nothing_else(records, exported, tmp_path, monkeypatch):
    record = choose(records)
    shutil.copytree(exported, tmp_path / "out")
    export(record, tmp_path / "out", format="delta")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "record.json", "delta.safetensors",
    }  # fmt: skip
    monkeypatch.setitem(PROGRAMS, "timm", "logits = images[:, 0, 0, :10]")  # a reader that reads something else
    with pytest.raises(InputError, match="nothing is exported.*choose another --format"):
        export(record, tmp_path / "out")
    assert read_export(tmp_path / "out").format == "delta"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "out")
    (tmp_path / "out" / ".unfinished-killed").mkdir()
    export(record, ".", format="delta")
    assert len(list((tmp_path / "out").iterdir())) == 4
    for name in ("README.md", "config.json"):  # a model of someone else
        (tmp_path / "theirs").mkdir(exist_ok=True)
        (tmp_path / "theirs" / name).write_text("# mine")
    with pytest.raises(InputError, match="is in use"):
        export(record, tmp_path / "theirs")
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is in use"):
        export(record, tmp_path / "out")


def test_weights_and_class_names_that_have_changed_are_refused(records, tmp_path):
    cell = Path(shutil.copytree(choose(records).folder, tmp_path / "cell"))
    record = replace(choose(records), folder=str(cell))
    tensors = load_file(cell / "weights.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, cell / "weights.safetensors")
    with pytest.raises(InputError, match="have changed since training"):
        export(record, tmp_path / "out")
    save_file(tensors, cell / "weights.safetensors")
    (cell / "predictions.safetensors").write_bytes(b"0")
    with pytest.raises(InputError, match="which has the class names, is missing or has changed"):
        export(record, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_images_are_not_compared_with_the_record(exported, capsys):
    assert not evaluate(exported, ["seed=5"]).same_images
    main(["evaluate", str(exported), "seed=5"])
    out = " ".join(capsys.readouterr().out.split())
    assert "so its record is not compared" in out
    assert not evaluate(exported, "data.test_per_class=4").same_images
    for word in ("model=vgg16", "trainer.precision=16-mixed", "data.image_size=128", "data.batch_size=5", "block=3"):
        with pytest.raises(InputError, match=f"evaluate {word} has no effect"):
            evaluate(exported, [word])


@pytest.mark.slow
def test_a_transformer_at_another_size_loads_by_its_pretrained_cfg(tmp_path):
    given = [word for word in SMALL if not word.startswith(("model.name", "data.image_size"))]
    overrides = [
        *given,
        "model.name=test_vit",
        "data.image_size=64",
        "block=head",
        f"results_dir={tmp_path / 'results'}",
    ]
    (record,) = run(quick_config(overrides), Console(quiet=True))
    record = replace(record, provenance={**record.provenance, "command": command(*overrides)})
    folder = export(record, tmp_path / "out").folder
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    path = str(folder / "model.safetensors")
    network = timm.create_model("test_vit", num_classes=10, pretrained_cfg=config, checkpoint_path=path).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), logits_of(record, images), rtol=1e-4, atol=1e-4)


def test_all_images_of_a_folder_can_be_measured(exported, tmp_path, capsys):
    for name, number in (("3", 4), ("7", 2)):
        (tmp_path / "new" / name).mkdir(parents=True)
        for seed in range(number):
            photograph(tmp_path / "new" / name, f"{seed}.png", seed)
    found = evaluate(exported, images=tmp_path / "new")
    right = [one.classes[0] == one.image.parent.name for one in predict(exported, tmp_path / "new")]
    assert (found.images, found.same_images) == (6, False)
    assert found.metrics["top1"] == pytest.approx(sum(right) / 6)
    main(["evaluate", str(exported), str(tmp_path / "new")])
    assert "6 test images" in capsys.readouterr().out
    (tmp_path / "new" / "7" / "broken.png").write_bytes(b"no image")
    main(["evaluate", str(exported), str(tmp_path / "new")])
    assert "6 test images, 1 more cannot be read" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "new" / "cat").mkdir()
    photograph(tmp_path / "new" / "cat")
    for folder, sentence in (("new", "no classes of .*: cat; its classes are 0, 1"), ("none", "none is not a folder")):
        with pytest.raises(InputError, match=sentence):
            evaluate(exported, images=tmp_path / folder)
    with pytest.raises(SystemExit):
        main(["evaluate", str(exported), "here", "there"])
    assert "one folder at a time, not 2: here there" in capsys.readouterr().err


def test_a_record_is_given_as_its_row_or_its_folder(records, tmp_path):
    row = records_frame([choose(records)]).iloc[0]
    for number, given in enumerate((row, row.folder)):
        assert export(given, tmp_path / str(number), format="delta").record.cell.scope == choose(records).cell.scope
    with pytest.raises(InputError, match="int is not a record: give one, a row of read_records, or a cell's folder"):
        export(3, tmp_path / "none")
    with pytest.raises(InputError, match="export block=3 has no effect: it takes model.checkpoint"):
        export(row, tmp_path / "none", overrides=["block=3"])


def test_an_export_among_the_records_is_no_record(records, exported, tmp_path):
    shutil.copytree(Path(records[0].folder).parents[4], tmp_path / "results")
    shutil.copytree(exported, tmp_path / "results" / "exported")
    assert [record.cell for record in read_records(tmp_path / "results")] == [record.cell for record in records]
    assert [record.cell for record in read_records(exported)] == [choose(records).cell]


def test_scopes_have_several_names(records):
    assert choose(records, scope="-1").cell.scope == "2"
    assert choose(records, scope="2+0").cell.scope == "0+2"


def test_wrong_choices_are_named(records):
    for options, sentence in (
        ({"model": "test_resnt"}, "--model test_resnt has no records: choose test_resnet.*mean 'test_resnet'"),
        ({"data": "cats"}, "--data cats has no records: choose digits"),
        ({"scope": "7"}, "has no finished scope 7: choose head"),
        ({"seed": 3}, r"has no seed 3: choose \{0\}|has no seed 3: choose \[0\]"),
    ):
        with pytest.raises(InputError, match=sentence):
            choose(records, **options)
    other = [replace(r, backbone=replace(r.backbone, name="other")) for r in records]
    with pytest.raises(InputError, match=r"2 sweeps fit \(.*; .*\): give the folder of one, or choose with --model"):
        choose([*records, *other])
    other = [replace(r, settings={**r.settings, "folds": 3}, folder=f"{r.folder}-folds") for r in records]
    with pytest.raises(
        InputError, match="2 sweeps fit .*settings differ: give the folder of one cell, such as"
    ) as told:
        choose([*records, *other])
    folders = str(told.value).rpartition("such as ")[2].split(", ")
    assert [choose([r for r in (*records, *other) if r.folder == folder]).folder for folder in folders] == folders


@pytest.mark.parametrize(
    "word",
    [
        "data.source._target_=builtins.print",
        "+data.source={_target_:builtins.print}",
        "data.augment=[{_target_:builtins.print}]",
        "data.augment=[${oc.decode:'{_tar${oc.env:NONE,get}_:builtins.print}'}]",
        "data@model=digits",
        "hydra.searchpath=[file:///tmp]",
    ],
)
def test_a_strangers_record_runs_no_code(records, word):
    trained = choose(records)
    words = f"{trained.provenance['command']} {shlex.quote(word)}"
    given = replace(trained, provenance={**trained.provenance, "command": words})
    assert config_of(given) == config_of(trained)
    if "data" in word:
        with pytest.raises(InputError, match="which may name code: give it again, if you trust it"):
            config_of(given, with_data=True)
    named = "data.source._target_=builtins.print"
    assert config_of(given, [named]).data.source._target_ == "builtins.print"


def test_a_strangers_record_composes_no_files_from_elsewhere(records, tmp_path):
    (tmp_path / "evil.yaml").write_text("source: {_target_: builtins.print}")
    trained = choose(records)
    for place in (tmp_path / "evil", os.path.relpath(tmp_path / "evil", CONFIG_DIR / "data")):
        words = f"{trained.provenance['command']} data={place}"
        given = replace(trained, provenance={**trained.provenance, "command": words})
        assert config_of(given).data.source._target_ != "builtins.print"


@pytest.mark.slow
def test_an_export_can_be_trained_again_and_exported(exported, tmp_path):
    given = [word for word in SMALL if not word.startswith("model.")]
    overrides = [*given, f"model.name=local-dir:{exported}", "block=head", f"results_dir={tmp_path / 'results'}"]
    (record,) = run(quick_config(overrides), Console(quiet=True))
    record = replace(record, provenance={**record.provenance, "command": command(*overrides)})
    folder = export(record, tmp_path / "again").folder
    assert json.loads((folder / "config.json").read_text())["architecture"] == "test_resnet"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
    torch.testing.assert_close(logits, logits_of(record, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "README.md").unlink(), "is not an export: it has no README.md"),
        (lambda f: (f / "README.md").write_text("# mine"), "is not an export of blockwise"),
        (lambda f: (f / "model.safetensors").write_bytes(b"0"), "model.safetensors has changed since it was exported"),
        (lambda f: (f / "config.json").unlink(), "config.json cannot be read"),
        (lambda f: edit(f, "schema: 1", "schema: 2"), "has schema 2, but this version reads 1"),
        (lambda f: edit(f, "format: timm", "format: [timm]"), "does not tell which files the export has"),
        (lambda f: edit(f, "---\n", f"---\nx: {3000 * '['}\n"), "has no metadata of it"),
    ],
)
def test_a_changed_export_is_refused(exported, tmp_path, change, sentence):
    folder = Path(shutil.copytree(exported, tmp_path / "out"))
    change(folder)
    with pytest.raises(InputError, match=sentence):
        read_export(folder)


def edit(folder, old, new):
    path = folder / "README.md"
    path.write_text(path.read_text().replace(old, new))


def test_pictures_show_where_a_class_comes_from(records, exported, tmp_path, capsys):
    pytest.importorskip("captum")
    head = export(choose(records, scope="head"), tmp_path / "head", format="delta").folder
    results = Path(records[0].folder).parents[4]
    image, broken = photograph(tmp_path), tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    image = image.rename(image.with_name("a$x^{$.png"))  # no formula
    beside = ["--beside", str(head), "--beside", str(results)]
    with pytest.raises(SystemExit):
        main(["predict", str(exported), str(image), str(broken), "--explain", str(tmp_path / "p"), *beside])
    (picture,) = (tmp_path / "p").iterdir()
    # the image, the export, the head alone twice, and full
    assert Image.open(picture).size[0] > 3.5 * Image.open(picture).size[1]
    assert "1 picture written" in capsys.readouterr().err


def test_grad_cam_finds_the_pixels_that_decide():
    pytest.importorskip("captum")

    class Corner(torch.nn.Module):
        """Class 1 if the upper left corner is bright."""

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 2, 1, bias=False)
            torch.nn.init.constant_(self.conv.weight[0], -1.0)
            torch.nn.init.constant_(self.conv.weight[1], 1.0)

        def forward(self, x):
            return self.conv(x).relu().mean((2, 3))

    network, images = Corner(), torch.zeros(1, 3, 8, 8)
    images[..., :4, :4] = 1
    heat, label, share = grad_cam(network, Positions(network.conv, "nchw", 8), images)
    assert label == 1
    assert share > 0.5
    assert heat[:3, :3].min() > heat[5:, 5:].max()


def test_an_export_can_be_handed_to_the_hub(exported, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, repo_id, folder_path):
            calls.append((repo_id, folder_path))
            if repo_id == "refused/x":
                raise OSError("no token")
            return SimpleNamespace(commit_url="https://the.hub/me/x")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert push_to_hub(exported, "me/x") == "https://the.hub/me/x"
    assert calls[1] == ("me/x", exported)
    with pytest.raises(InputError, match=r"--push-to-hub refused/x: the hub refuses it \(.*no token"):
        push_to_hub(exported, "refused/x")


def test_bad_input_is_one_sentence(records, exported, tmp_path):
    other = load_backbone("timm:test_resnet", pretrained=False, image_size=32, seed=9)
    (tmp_path / "empty").mkdir()
    for call, sentence in (
        (lambda: predict(exported, [tmp_path / "empty"]), "has no images"),
        (lambda: predict(exported, []), "there are no images"),
        (lambda: predict(exported, [Image.new("RGB", (8, 8))]), "Image is not a file: give files"),
        (lambda: check_repository("no name"), "--push-to-hub no name: the hub has no such names"),
        (lambda: predict(exported, [tmp_path / "nowhere.jpg"]), "nowhere.jpg does not exist"),
        (lambda: predict(exported, [photograph(tmp_path)], top=0), "--top 0 must be an integer of at least 1"),
        (lambda: fine_tuned(base_of(choose(records)), exported), "is a whole network: load it with timm"),
        (lambda: predict(tmp_path, [photograph(tmp_path)]), "is not an export"),
        (lambda: export(choose(records), tmp_path / "x", format="tf"), "--format tf is unknown: choose timm, onnx"),
        (lambda: export(replace(choose(records), status="pruned"), tmp_path / "x"), "has the status pruned"),
        (lambda: export(choose(records), tmp_path / "x", backbone=other), "whose tensors differ"),
    ):
        with pytest.raises(InputError, match=sentence):
            call()
        assert not (tmp_path / "x").exists()
