"""Every config composes; every invalid override gives a one-sentence message with a suggestion."""

import hydra
import pytest
from conftest import quick_config

from blockwise.config import plain
from blockwise.config.checks import check_config
from blockwise.config.compose import CONFIG_DIR, compose_config, options, settings
from blockwise.errors import InputError

NEEDED = {
    "model=timm": ["model.name=resnet18"],
    "model=torchvision": ["model.name=resnet18"],
    "data=csv": ["data.file=x.csv"],
    "data=huggingface": ["data.path=x"],
    "data=imagefolder": ["data.root=x"],
    "data=module": ["data.source._target_=my_data.MyDataModule"],
}


@pytest.mark.parametrize("group", [entry.name for entry in sorted(CONFIG_DIR.iterdir()) if entry.is_dir()])
def test_every_option_of_every_group_composes_and_passes_the_checks(group):
    for option in options(group):
        choice = f"{group}={option}"
        check_config(plain(compose_config([choice, *NEEDED.get(choice, [])])))


@pytest.mark.parametrize("partition", options("partition"))
def test_every_partitioner_is_made(partition):
    assert hydra.utils.instantiate(compose_config([f"partition={partition}"]).partition).name == partition


@pytest.mark.parametrize("data", sorted({*options("data")} - {"module"}))
def test_every_source_is_made(data, tmp_path):
    place = {"digits": [], "csv": ["data.file=x.csv"], "huggingface": ["data.path=x"]}.get(
        data, [f"data.root={tmp_path}"]
    )
    cfg = compose_config([f"data={data}", *place])
    assert hydra.utils.instantiate(cfg.data.source).name == data


def test_the_keys_of_the_contract_are_there():
    promised = (
        "model data partition block seed results_dir model.pretrained model.checkpoint data.image_size "
        "data.batch_size data.train_per_class data.val_per_class data.test_per_class data.num_workers "
        "partition.num_blocks optimizer.lr optimizer.block_lr optimizer.weight_decay trainer.max_epochs "
        "trainer.precision trainer.devices freeze.norm logger"
    ).split()
    assert set(promised) <= set(settings())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=vgg61"], r"model=vgg61 is unknown: choose from .*vgg16.*Did you mean 'vgg16'\?"),
        (["data=flowers"], r"data=flowers is unknown: choose from .*Did you mean '.*flowers"),
        (["partition=segmnt"], r"partition=segmnt is unknown.*Did you mean 'segment'"),
        (["optimizer=adam"], r"optimizer=adam is unknown.*Did you mean 'adamw'"),
        (["optimizer.lrr=1"], r"there is no setting optimizer.lrr. Did you mean 'optimizer.lr'\?"),
        (["modle=vgg16"], r"there is no setting modle. Did you mean 'model'\?"),
        (["block=range(0,12)"], r"block=range\(0,12\) has several values: add -m to .* list, block=\[\.\.\.\]$"),
        (["block=1,2"], "has several values: add -m"),
        (["logger=[csv,bogus]"], "logger=bogus is unknown: choose from csv, none, tensorboard, wandb"),
        (["partition=layer", "partition.num_blocks=4"], "partition.num_blocks here: it belongs to another config of"),
        (["optimizer=null"], "optimizer=null chooses no config: choose from adamw, sgd"),
        (
            ["data.augment={_target_:x.Y}"],
            r"is a mapping in place of a list: write data.augment=\[\{_target_:x.Y\}\]",
        ),
        (["block"], "block has no value: write block=<value>"),
    ],
)
def test_overrides_that_do_not_compose(overrides, message):
    with pytest.raises(InputError, match=message) as caught:
        compose_config(overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=-1e-3", "optimizer.lr=-0.001 must be a number greater than 0"),
        ("optimizer.lr=0", "optimizer.lr=0 must be a number greater than 0"),
        ("optimizer.lr=nan", "optimizer.lr=nan must be a number"),
        ("optimizer.lr=fast", "optimizer.lr=fast must be a number"),
        ("optimizer.lr=null", "optimizer.lr=None must be a number"),
        ("optimizer.lr=[]", "optimizer.lr=.* trains nothing"),
        ("optimizer.lr=[1e-3,-1]", "optimizer.lr=-1 must be"),
        ("optimizer.lr=[1e-3,0.001]", "lists a learning rate twice"),
        ("optimizer.block_lr=-1", "optimizer.block_lr=-1 must be a number greater than 0, or null"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1 must be a number of at least 0"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0 must be an integer of at least 1"),
        ("trainer.max_epochs=1.5", "trainer.max_epochs=1.5 must be an integer"),
        ("seed=-1", "seed=-1 must be an integer of at least 0"),
        ("seed=null", "seed=None must be"),
        ("data.batch_size=1", "data.batch_size=1 must be an integer of at least 2"),
        ("data.image_size=big", "data.image_size=big must be"),
        ("data.num_workers=-1", "data.num_workers=-1 must be"),
        ("data.train_per_class=1", "data.train_per_class=1 must be an integer of at least 2, or null"),
        ("data.crop_pct=2", "data.crop_pct=2 must be between 0.1 and 1"),
        ("data.augment=[flop]", r"data.augment=flop is unknown.*Did you mean 'flip'"),
        ("data.augment=ligth", r"data.augment=ligth is unknown.*Did you mean 'light'"),
        ("data.augment=null", r"data.augment=None is unknown: choose none or light"),
        ("data.augment=[crop,3]", r"data.augment=3 is unknown"),
        (
            "data.augment=[crop,light]",
            "light is a preset and no part of a list: write data.augment=light",
        ),
        ("data.augment=[crop,flip,crop]", r"data.augment lists crop twice"),
        ("data.augment=[[crop,flip]]", r"data.augment has a list in its list, \['crop', 'flip'\]: write all names"),
        ("data.augment=[{brightness:1}]", r"data.augment: {'brightness': 1} has no _target_: name a transform"),
        ("data.split_seed=-1", "data.split_seed=-1 must be an integer of at least 0, or null"),
        ("data.mixup=-0.2", "data.mixup=-0.2 must be a number of at least 0"),
        ("data.cutmix=on", "data.cutmix=on must be a number of at least 0"),
        ("data.sampler=balance", r"data.sampler=balance is unknown: choose shuffle or balanced.*'balanced'"),
        ("freeze.norm=frozen", "freeze.norm=frozen is unknown: choose train or eval"),
        ("seed=18446744073709551615", "is too large: choose 0 to 4294967295"),
        ("data.skip_broken=no", "data.skip_broken=no must be true or false"),
        ("model.pretrained=off", "model.pretrained=off must be true or false"),
        ("data.name=../../evil", "data.name=../../evil must be a name"),
        ("model.name=null", "model.name=None must be a name"),
        ("results_dir=null", "results_dir=None must be text"),
        ("model.std=[0,1,1]", r"model.std=\[0, 1, 1\] must be three numbers greater than 0"),
        ("model.mean=0.5", "model.mean=0.5 must be three numbers"),
        ("model.source=foo", "model.source=foo is unknown: choose timm or torchvision"),
        ("trainer.precision=64-true", "trainer.precision=64-true is unknown: choose 32-true or bf16-mixed"),
        ("trainer.devices=2", "trainer.devices=2: to train one run on several devices, use trainer=ddp"),
        ("early_stopping=null", "early_stopping=None is not a group of settings"),
        ("early_stopping.patience=0", "early_stopping.patience=0 must be"),
        ("model.interpolation=cubic", r"model.interpolation=cubic is unknown.*Did you mean 'bicubic'"),
    ],
)
def test_values_that_cannot_be_right(override, message):
    with pytest.raises(InputError, match=message) as caught:
        check_config(plain(quick_config([override])))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "augment", ["light", "crop", "[]", "[crop,{_target_:torchvision.transforms.v2.GaussianBlur,kernel_size:3}]"]
)
def test_presets_names_and_transforms_compose(augment):
    check_config(plain(quick_config([f"data.augment={augment}", "data.mixup=0.2", "data.sampler=balanced"])))


def test_a_data_set_of_before_has_no_newer_settings():
    cfg = plain(compose_config([]))
    for key in ("mixup", "cutmix", "sampler"):
        del cfg["data"][key]
    check_config(cfg)


def test_zero_is_a_value():
    check_config(plain(quick_config(["seed=0", "optimizer.weight_decay=0", "data.num_workers=0"])))


@pytest.mark.parametrize(
    ("data", "key"), [("imagefolder", "data.root"), ("csv", "data.file"), ("huggingface", "data.path")]
)
def test_what_must_be_given_is_named(data, key):
    with pytest.raises(InputError, match=f"^{key} is missing: set {key}=<value>$"):
        plain(compose_config([f"data={data}"]))
