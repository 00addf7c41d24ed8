"""What blockwise's own data modules share: batches that resume within an epoch and that several processes divide."""

from __future__ import annotations

from abc import abstractmethod

import lightning as L

SPLITS = ("train", "val", "test")


class ResumableDataModule(L.LightningDataModule):
    """A data module whose batches depend only on seed and epoch.

    Attributes:
        resume_at: Epoch and number of the first batch, if training resumes from a checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self.resume_at = (0, 0)

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Return the number of images per split; 0 if it is unknown."""

    @abstractmethod
    def batches(self) -> dict[str, int]:
        """Return the number of batches per split, without decoding images."""

    def setup(self, stage: str | None = None) -> None:
        """Forget where an earlier fit resumed; Lightning restores the state from a checkpoint after this."""
        del stage
        self.resume_at = (0, 0)

    def state_dict(self) -> dict[str, int]:
        """Return where training goes on: the epoch, and the number of its batches that are done."""
        assert self.trainer is not None
        done = self.trainer.fit_loop.epoch_loop.batch_idx + 1
        if done < self.trainer.num_training_batches:
            return {"epoch": self.trainer.current_epoch, "batch": done}
        # Worker processes load the first batches before Lightning sets the epoch
        return {"epoch": self.trainer.current_epoch + 1, "batch": 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume from the epoch and batch in `state_dict`."""
        self.resume_at = (state_dict["epoch"], state_dict["batch"])

    def part(self) -> tuple[int, int]:
        """Return the rank of this process, and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
