"""Load an export in another process, without blockwise, and compare its logits with the trained network's."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor, nn

from blockwise.errors import InputError
from blockwise.exports.folder import FILES
from blockwise.exports.formats import Trained
from blockwise.exports.network import network_from

# relative to the largest logit
TOLERANCE = 1e-4
PROGRAMS = {
    "timm": """
import timm, torch
network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
with torch.no_grad():
    logits = network(torch.from_numpy(images)).numpy()
""",
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
logits = session.run(["logits"], {"images": images})[0]
""",
    "torch_export": """
import torch
program = torch.export.load(f"{folder}/model.pt2").module()
with torch.no_grad():
    logits = program(torch.from_numpy(images)).numpy()
""",
}
FRAME = """
import sys
import numpy as np
folder, given, written = sys.argv[1:]
images = np.load(given)
{program}
assert not any(name.partition(".")[0] == "blockwise" for name in sys.modules)
np.save(written, logits)
"""


def verify_delta(folder: Path, trained: Trained) -> None:
    """Check that a delta on its base is the trained network.

    Raises:
        InputError: Its logits differ.
    """
    network = network_from(trained.backbone, load((folder / FILES["delta"]).read_bytes()), trained.record)
    with torch.no_grad():
        if not torch.equal(network(trained.images), trained.network(trained.images)):
            raise InputError("nothing is exported: the delta was written, but on its base it is another network")


def verify(folder: Path, kind: str, network: nn.Module, images: Tensor) -> float:
    """Return the largest difference of logits, relative to the largest logit.

    Args:
        folder: The export.
        kind: Its format.
        network: The trained network.
        images: Normalised images, shape (images, 3, size, size).

    Raises:
        InputError: The export cannot be loaded, or its logits differ.
    """
    with torch.no_grad():
        expected = network(images).numpy()
    with tempfile.TemporaryDirectory() as temporary:
        given, written = Path(temporary, "images.npy"), Path(temporary, "logits.npy")
        np.save(given, images.contiguous().numpy())
        program = FRAME.format(program=PROGRAMS[kind])
        # isolated: neither the current folder nor PYTHONPATH can bring blockwise in
        command = [sys.executable, "-I", "-c", program, str(folder.resolve()), str(given), str(written)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            advice = ": pip install 'blockwise[onnx]'" if "onnxruntime" in reason else ""
            raise InputError(f"nothing is exported: {FILES[kind]} was written, but cannot be loaded ({reason}){advice}")
        logits = np.load(written)
    difference = float(np.abs(logits - expected).max() / max(np.abs(expected).max(), 1e-12))
    if logits.shape != expected.shape or not difference <= TOLERANCE:
        raise InputError(
            f"nothing is exported: {FILES[kind]} was written, but its logits differ from the trained network's by "
            f"{difference:.2g} of the largest: choose another --format"
        )
    return difference
