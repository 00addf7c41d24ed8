"""Damaged and foreign checkpoints: loaded with finite numbers, or refused in one line without torch's advice."""

import io
import json
import zipfile

import pytest
import torch
from fuzzing import EDGES, check_line, damaged, examples, within_limits
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from blockwise.backbone.makers.weights import load_checkpoint, match_names, read_state_dict
from blockwise.errors import InputError

CLASSIFIERS = ("3",)


def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


torch.manual_seed(0)
STATE = make().state_dict()


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def check(content, suffix):
    """Load a file into a network; whatever was loaded is numbers."""
    with within_limits() as folder:
        path = folder / f"weights{suffix}"
        path.write_bytes(content)
        network = make()
        try:
            load_checkpoint(network, path, CLASSIFIERS)
        except InputError as error:
            assert str(path) in str(error)
            raise
        finally:
            assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


SAFE = save(STATE)
TORCH = [saved(STATE), saved({"state_dict": STATE, "epoch": 3}), saved(STATE, _use_new_zipfile_serialization=False)]
HEADER = json.loads(SAFE[8 : 8 + int.from_bytes(SAFE[:8], "little")])
BODY = SAFE[8 + int.from_bytes(SAFE[:8], "little") :]


@given(damaged(SAFE))
@examples()
def test_damaged_safetensors_are_loaded_or_refused(content):
    check(content, ".safetensors")


LENGTHS = st.one_of(st.integers(-1, 200), st.sampled_from((2**31, 2**63, 2**64)))
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from("F32 F32 F64 F16 BF16 F8_E4M3 F8_E5M2 F4 I64 I8 BOOL C64 U64 X".split()),
        "shape": st.lists(LENGTHS, max_size=4),
        "data_offsets": st.lists(LENGTHS, min_size=1, max_size=3),
    }
)


@given(
    st.dictionaries(st.one_of(st.sampled_from(sorted(HEADER)), st.text(max_size=8)), ENTRY, max_size=3), st.booleans()
)
@examples(0.5)
def test_safetensors_with_another_header_are_loaded_or_refused(changes, replace):
    header = json.dumps(changes if replace else {**HEADER, **changes}).encode()
    check(len(header).to_bytes(8, "little") + header + BODY, ".safetensors")


@given(damaged(*TORCH))
@examples()
def test_damaged_files_of_torch_are_loaded_or_refused(content):
    check(content, ".pth")


def repacked(content, changes):
    """Return a file of torch of which one entry, such as the pickle, is replaced."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, changes if name.endswith("data.pkl") else old.read(name))
    return file.getvalue()


PICKLE = next(
    archive.read(name)
    for archive in [zipfile.ZipFile(io.BytesIO(TORCH[0]))]
    for name in archive.namelist()
    if name.endswith("data.pkl")
)


@given(damaged(PICKLE))
@examples(0.5)
def test_damaged_pickles_are_loaded_or_refused(content):
    check(repacked(TORCH[0], content), ".pth")


@given(st.binary(max_size=100), st.sampled_from((".pth", ".safetensors")))
@examples(0.5)
def test_bytes_are_no_weights(content, suffix):
    check(content, suffix)


def quantized(tensor):
    return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)


SPECIAL = {
    "sparse": lambda t: t.to_sparse(),
    "compressed": lambda t: t.reshape(1, -1).to_sparse_csr(),
    "meta": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
    "quantized": quantized,
    "boolean": lambda t: t > 0,
    "empty": lambda t: torch.zeros(0),
    "nested": lambda t: torch.nested.nested_tensor([t.float().flatten(), torch.zeros(3)]),
    "jagged": lambda t: torch.nested.nested_tensor([t.float().flatten(), torch.zeros(3)], layout=torch.jagged),
    "double": lambda t: t.double(),
    "too large": lambda t: torch.full_like(t, 1e300, dtype=torch.float64),
    "half": lambda t: t.half(),
    "brain": lambda t: t.bfloat16(),
    "eight bits": lambda t: t.to(torch.float8_e4m3fn),
    "four bits": lambda t: torch.zeros(t.shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "whole": lambda t: t.to(torch.int8),
    "not a number": lambda t: torch.full_like(t, float("nan"), dtype=torch.float32),
    "expanded": lambda t: torch.zeros(()).expand(t.shape),
    "huge": lambda t: torch.zeros(()).expand(10**6, 10**6),
    "transposed": lambda t: t.T if t.dim() == 2 else t,
    "parameter": lambda t: nn.Parameter(t.float()),
    "scalar": lambda t: torch.tensor(1.0),
    "number": lambda t: 1.0,
    "text": lambda t: "weights",
    "same": lambda t: t,
}
KEYS = st.one_of(
    st.sampled_from(sorted(STATE)),
    st.sampled_from(("module.0.weight", "x", "", "0.gamma", "state_dict", "model", "\x1b[31m\n", "\ud800", "\udcff")),
    st.text(max_size=8),
    st.one_of(st.integers(), st.none(), st.booleans(), st.tuples(st.integers())),
)


@st.composite
def state_dicts(draw):
    """A state dict with other names, tensors of other kinds, and dictionaries around and inside."""
    state = dict(STATE)
    for key in draw(st.lists(st.sampled_from(sorted(STATE)), max_size=3)):
        state.pop(key, None)
    for key, kind in draw(st.lists(st.tuples(KEYS, st.sampled_from(sorted(SPECIAL))), max_size=3)):
        state[key] = SPECIAL[kind](STATE.get(key, STATE["3.weight"]))
    if draw(st.booleans()):
        prefix = draw(st.sampled_from(("module.", "model.", "backbone.", "x.", "\n")))
        state = {prefix + name if isinstance(name, str) else name: value for name, value in state.items()}
    if draw(st.booleans()):
        state = dict(draw(st.permutations(list(state.items()))))
    for key in draw(st.lists(st.sampled_from(("state_dict", "model", "model_state_dict", "x", 1)), max_size=3)):
        state = {key: state}
    return state


@pytest.mark.filterwarnings("ignore")
@given(state_dicts())
@examples(0.6)
def test_every_state_dict_is_loaded_or_refused(state):
    check(saved(state), ".pth")


SHAPES = st.lists(st.integers(0, 3), max_size=3)
SMALL = st.dictionaries(
    st.one_of(
        st.sampled_from(("a.weight", "a.bias", "b.weight", "b.num_batches_tracked", "head.weight")), st.text(max_size=4)
    ),
    SHAPES,
    max_size=5,
)


@given(SMALL, SMALL, st.sampled_from(((), ("head",), ("a", "head"), ("",))))
@examples(0.5)
def test_names_are_matched_or_refused(state, wanted, classifiers):
    with within_limits():
        state, wanted = ({name: torch.zeros(shape) for name, shape in one.items()} for one in (state, wanted))
        matched, _ = match_names(state, wanted, classifiers, "file")
        assert all(matched[name].shape == wanted[name].shape for name in matched)


class Model(nn.Linear):
    """A network that was saved as a whole."""


def script():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(make()), file)
    return file.getvalue()


def bomb():
    """Return a file of torch that is compressed: 400 kB of zeros unpack to 100 times that."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"x": torch.zeros(10**7)}))) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


FILES = {
    "text": b"hello, this is text\n",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
    "page": b"<!DOCTYPE html><html></html>",
    "nothing": b"",
    "start of a zip archive": b"PK\x03\x04" + b"a" * 50,
    "edges": b"".join(EDGES),
    "network": saved(Model(2, 3)),
    "network in the old format": saved(Model(2, 3), _use_new_zipfile_serialization=False),
    "first half": TORCH[0][: len(TORCH[0]) // 2],
    "first bytes": TORCH[0][:10],
    "without its end": TORCH[0][:-10],
    "half of the old format": TORCH[2][: len(TORCH[2]) // 2],
    "half of safetensors": SAFE[: len(SAFE) // 2],
    "huge header": b"\xff" * 8 + SAFE,
    "commands in a header": SAFE[:8] + SAFE[8:].replace(b"0.weight", b"0.we\x1b[3m", 1),
    "unknown type": SAFE.replace(b"F32", b"F99", 1),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", [*FILES, "script", "bomb"])
def test_what_is_no_file_of_weights_is_one_sentence(name, suffix):
    content = FILES[name] if name in FILES else {"script": script, "bomb": bomb}[name]()
    with within_limits() as folder:
        (folder / f"weights{suffix}").write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as weights: it is damaged, or it contains") as caught:
            read_state_dict(folder / f"weights{suffix}")
        check_line(str(caught.value))
        assert str(caught.value).count(". ") == 0


REFUSED = ["sparse", "compressed", "meta", "complex", "quantized", "boolean", "empty", "nested", "jagged", "too large",
           "four bits", "whole", "not a number", "number", "text"]  # fmt: skip
LOADED = ["double", "half", "brain", "eight bits", "expanded", "parameter", "same"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_tensor_that_is_no_dense_number_is_refused_by_name(kind):
    content = saved({**STATE, "0.weight": SPECIAL[kind](STATE["0.weight"])})
    with within_limits() as folder:
        (folder / "weights.pth").write_bytes(content)
        with pytest.raises(InputError, match=r"0\.weight") as caught:
            load_checkpoint(make(), folder / "weights.pth", CLASSIFIERS)
        check_line(str(caught.value))


@pytest.mark.parametrize("kind", LOADED)
def test_a_tensor_of_another_type_is_loaded(kind):
    with within_limits() as folder:
        torch.save({**STATE, "0.weight": SPECIAL[kind](STATE["0.weight"])}, folder / "weights.pth")
        assert load_checkpoint(make(), folder / "weights.pth", CLASSIFIERS) is False


@pytest.mark.parametrize("name", ["\x1b[31m\n", "\ud800", "x" * 10_000])
def test_the_name_of_a_tensor_is_shown_short_and_without_commands(name):
    with pytest.raises(InputError, match="unexpected") as caught:
        match_names({**STATE, name: torch.zeros(2)}, STATE, CLASSIFIERS, "file")
    check_line(str(caught.value))
    assert len(str(caught.value)) < 1000


def test_names_that_are_no_text_are_left_out():
    with within_limits() as folder:
        torch.save({1: torch.zeros(2), None: torch.zeros(2), **STATE}, folder / "weights.pth")
        assert set(read_state_dict(folder / "weights.pth")) == set(STATE)
