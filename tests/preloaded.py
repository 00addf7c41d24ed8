"""What `blockwise train` imports. A fork server imports this module once, for all processes of `processes.py`."""

import sys

# timm imports wandb, which reads its environment variables when it is imported: each process imports its own
sys.modules["wandb"] = None
import blockwise.study.run  # noqa: E402, F401

del sys.modules["wandb"]
