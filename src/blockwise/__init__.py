"""Which part of a pretrained network should I fine-tune?

Block-wise fine-tuning (Barakat & Huang, 2023): train one block of a frozen backbone and a new head, and find out
which block serves best, beside two baselines: head only, and everything.
"""

__version__ = "0.1.0"
