"""Policies: which blocks of a scope, and whether the head, train in each epoch.

A policy is any callable with the signature of `Policy`, so a class of your own needs no base class:

>>> from dataclasses import dataclass
>>> from blockwise.policies import Phase
>>> @dataclass(frozen=True)
... class HeadFirst:
...     head_epochs: int = 1
...
...     def __call__(self, blocks, epoch, max_epochs):
...         return Phase(()) if epoch < self.head_epochs else Phase(blocks)
>>> HeadFirst()((3, 7), epoch=0, max_epochs=10), HeadFirst()((3, 7), epoch=1, max_epochs=10)
(Phase(blocks=(), head=True), Phase(blocks=(3, 7), head=True))
"""

from blockwise.policies.cyclic import Cyclic
from blockwise.policies.gradual import Gradual
from blockwise.policies.lp_ft import LPFT
from blockwise.policies.policy import Phase, Policy, check_policy, head_epochs, phases
from blockwise.policies.static import Static
from blockwise.results.record import STATIC

# the names of our policies, as those of their files in conf/policy
POLICY_NAMES: dict[type, str] = {Static: STATIC, LPFT: "lp_ft", Gradual: "gradual", Cyclic: "cyclic"}

__all__ = [
    "LPFT",
    "POLICY_NAMES",
    "STATIC",
    "Cyclic",
    "Gradual",
    "Phase",
    "Policy",
    "Static",
    "check_policy",
    "head_epochs",
    "phases",
]
