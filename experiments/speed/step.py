"""One training step of a sweep, in parts, for `contender.py floor` and `profile_step.py`."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from blockwise.fast.fusion import fusion_for
from blockwise.fast.memory import keep_freed_memory
from blockwise.study.study import Study
from blockwise.training.module import HALF, BlockwiseModule


class Step:
    """The parts of a step on one real batch, on the CPU.

    Attributes:
        names: The cells' scopes.
    """

    def __init__(self, study: Study) -> None:
        keep_freed_memory()
        data: Any = study.data.module
        data.setup("fit")
        cells = study.cells()
        self.names = [cell.scope.name for cell in cells]
        classes = len(study.data.classes)
        self._module = BlockwiseModule(study.staged, cells, classes, study.optimizer)
        dtype = HALF.get(study.trainer(logger=False).precision)
        study.staged.freeze(dtype or torch.float32, fuse=fusion_for(torch.device("cpu")))
        self._module.to(memory_format=torch.channels_last).train()
        self._optimizers = self._module.configure_optimizers()
        self._autocast: Any = torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext()
        batch = next(iter(data.train_dataloader()))
        self._images, self._labels = data.on_after_batch_transfer(batch, 0)
        self._wanted = {network.start for network in self._module.networks}
        with self._autocast:
            self._at = dict(study.staged.boundaries(self._images, self._wanted))

    def frozen(self) -> None:
        """Run the frozen stages, without gradients."""
        with self._autocast:
            for _ in self._module.backbone.boundaries(self._images, self._wanted):
                pass

    def cell(self, index: int) -> None:
        """Run one cell from its boundary: forward pass, backward pass, optimizer step."""
        network = self._module.networks[index]
        with self._autocast:
            logits = network(self._module.backbone, self._at[network.start])
            loss = cross_entropy(logits, self._labels)
        loss.backward()
        self._optimizers[index].step()
        self._optimizers[index].zero_grad()

    def whole(self) -> None:
        """Run the whole step."""
        self.frozen()
        for index in range(len(self.names)):
            self.cell(index)
