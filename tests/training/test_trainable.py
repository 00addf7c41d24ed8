"""Scopes that train a part of their blocks: norms, biases, low-rank updates."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from blockwise.analysis.summary import sweeps
from blockwise.api import fine_tuned
from blockwise.backbone.layers import is_norm, record_layers
from blockwise.backbone.load import load_backbone
from blockwise.backbone.stages import stage_backbone
from blockwise.errors import InputError
from blockwise.partition import LayerPartitioner
from blockwise.study.run import run
from blockwise.training.cells import CellNetwork
from blockwise.training.scopes import parse_scopes
from blockwise.training.trainable import check_scope


@pytest.fixture
def backbone(stub):
    partition = LayerPartitioner()(record_layers(stub, torch.zeros(1, 3, 16, 16)), stub)
    return stage_backbone(stub, partition, torch.randn(2, 3, 16, 16))


def network_of(backbone, scope, **options):
    (parsed,) = parse_scopes(scope, len(backbone.partition), "stub")
    return CellNetwork(backbone, parsed, 7, **options)


def trained(network):
    return {n for module in network.own.values() for n, p in module.named_parameters() if p.requires_grad}


def test_norms_are_those_of_the_blocks(backbone, stub):
    norms = {f"{name}.{kind}" for name, m in stub.named_modules() if is_norm(m) for kind in ("weight", "bias")}
    assert trained(network_of(backbone, "norms")) == norms
    assert trained(network_of(backbone, "norms:1")) == {"norm1.weight", "norm1.bias"}
    state = network_of(backbone, "norms:1").trained_state()
    assert set(state) - {"head.weight", "head.bias"} == {
        "norm1.weight", "norm1.bias", "norm1.running_mean", "norm1.running_var", "norm1.num_batches_tracked",
    }  # fmt: skip


def test_biases_are_those_of_all_layers(backbone, stub):
    biases = {name for name, _ in stub.named_parameters() if name.endswith("bias")}
    network = network_of(backbone, "bias", norm="train").train()
    assert trained(network) == biases
    assert set(network.trained_state()) == {"head.weight", "head.bias", *biases}
    assert not any(module.training for stage in network.own.values() for module in stage.modules() if is_norm(module))
    assert trained(network_of(backbone, "bias:0+2")) == {"stem.1.bias", "conv2.bias", "norm2.bias"}


def test_blocks_without_a_part_are_refused(backbone, stub):
    partition = backbone.partition
    (scope,) = parse_scopes("norms:4", len(partition), "stub")  # the fully connected layer
    with pytest.raises(InputError, match="block=norms:4: these blocks of stub have no norms to train"):
        check_scope(scope, partition, stub, "stub")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (["norms", "bias", "lora8"], ["norms", "bias", "lora8"]),
        ("norms:7", ["norms:7"]),
        ("bias:-1+3", ["bias:3+11"]),
        ("lora4:from10", ["lora4:from10"]),
        (["norms:7", "norms:-5"], ["norms:7"]),
    ],
)
def test_names(text, names):
    assert [scope.name for scope in parse_scopes(text, 12, "net")] == names


@pytest.mark.parametrize("text", ["norms:", "norms:x", "lora0", "lora", "lora8:top3", "norm", "norms:7:3", "lora8x"])
def test_what_is_no_scope(text):
    with pytest.raises(InputError, match="is not a scope"):
        parse_scopes(text, 12, "net")
    with pytest.raises(InputError, match="out of range"):
        parse_scopes("norms:99", 12, "net")


def test_baselines_of_parts_stand_beside_head_and_full(small, console):
    records = run(small("block=[full,0,bias,norms,head,norms:1]"), console)
    (sweep,) = sweeps(records)
    assert [row.scope for row in sweep.rows] == ["head", "bias", "norms", "0", "norms:1", "full"]
    assert [row.scope for row in sweep.single_blocks] == ["0"]
    assert {r.cell.scope: r.cell.quarter for r in records if r.cell.quarter} == {"0": 1}


def test_low_rank_updates(small, console):
    peft = pytest.importorskip("peft")
    cfg = small("block=[lora2,lora4:1]", "optimizer.lr=0.1")
    among, _ = run(cfg, console)
    backbone = load_backbone(cfg.model, image_size=32, seed=0)
    weights = load_file(f"{among.folder}/weights.safetensors")
    assert all(name.startswith("head.") or ".lora_" in name for name in weights)
    # merged, the network is the one that was trained: compare with peft's own merging
    merged = fine_tuned(backbone, among)
    reference = backbone.network
    layers = [n.removesuffix(".lora_A.default.weight") for n in weights if n.endswith("lora_A.default.weight")]
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, lora_alpha=2, target_modules=layers), reference)
    reference.load_state_dict({k: v for k, v in weights.items() if ".lora_" in k}, strict=False)
    for layer in layers:
        adapted = reference.get_submodule(layer)
        adapted.merge()
        mine = merged.get_submodule(f"backbone.{layer}").weight
        assert torch.allclose(mine, adapted.base_layer.weight, atol=1e-6)
        assert not torch.equal(mine, torch.zeros_like(mine))
    (alone,) = run(small("block=lora2", "optimizer.lr=0.1", f"results_dir={cfg.results_dir}/alone"), console)
    other = load_file(f"{alone.folder}/weights.safetensors")
    assert all(torch.equal(tensor, other[name]) for name, tensor in weights.items())
    assert any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name)


def test_untrained_low_rank_updates_change_nothing(backbone):
    pytest.importorskip("peft")
    images = torch.randn(4, 3, 16, 16)
    network = network_of(backbone, "lora8").eval()
    with torch.no_grad():
        (activations,) = (a for _, a in backbone.boundaries(images, {network.start}))
        assert torch.allclose(network(backbone, activations), network.head(backbone(images)), atol=1e-6)
    assert isinstance(backbone.stages.get_submodule("0").get_submodule("stem.0"), nn.Conv2d), "stages stay as they are"
