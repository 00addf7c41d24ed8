"""The flow of data through a forward pass: which step reads which values, and what is still needed later.

A step is a call that depends on the images: a layer, or a function between layers. A value is a tensor that a step
makes; the images are value 0. What depends on parameters and constants alone is no value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

# functions that rearrange elements and compute nothing
MOVES = frozenset(
    "cat concat concatenate stack view view_as reshape permute transpose swapaxes movedim flatten unflatten squeeze "
    "unsqueeze unbind chunk split tensor_split getitem get contiguous expand expand_as roll pad clone to float half "
    "type type_as pixel_shuffle pixel_unshuffle channel_shuffle narrow select index_select gather repeat_interleave "
    "detach t rearrange dropout Flatten Unflatten Permute Identity Dropout DropPath PixelShuffle PixelUnshuffle".split()
)
# products of matrices that both depend on the images: attention
PRODUCTS = frozenset("matmul bmm baddbmm einsum scaled_dot_product_attention multi_head_attention_forward".split())


@dataclass(frozen=True)
class Step:
    """One call of the forward pass.

    Attributes:
        name: Name of the function, or of the class of the layer.
        reads: The values that it reads.
        makes: The values that it makes.
        layer: Index of the layer, or None for a function between layers.
    """

    name: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    layer: int | None

    @property
    def moves(self) -> bool:
        """Whether the step only rearranges what it reads."""
        return self.name in MOVES


class DataFlow:
    """The steps of one forward pass in order, and questions about them.

    Attributes:
        steps: The steps so far.
        results: The values that the network returns.
        maker: The index of the step that makes a value.
        readers: The indices of the steps that read a value.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.results: frozenset[int] = frozenset()
        self.maker: dict[int, int] = {}
        self.readers: dict[int, list[int]] = {}
        self.sources = cache(self._sources)

    def add(self, step: Step) -> None:
        """Add the next step."""
        self.maker |= dict.fromkeys(step.makes, len(self.steps))
        for value in dict.fromkeys(step.reads):
            self.readers.setdefault(value, []).append(len(self.steps))
        self.steps.append(step)

    def _needed(self, value: int, index: int) -> bool:
        """Return whether a value is read by a step or by later ones, or is what the network returns."""
        return value in self.results or self.readers.get(value, [-1])[-1] >= index

    def _sources(self, value: int) -> frozenset[int]:
        """Return the values of which a value is a rearrangement."""
        maker = self.maker.get(value)
        if maker is None or not self.steps[maker].moves:
            return frozenset([value])
        return frozenset().union(*(self.sources(read) for read in self.steps[maker].reads))

    def live(self) -> Iterator[tuple[Step, frozenset[int]]]:
        """Yield each step and the sources of all values that exist before it and are read by it or by later steps."""
        alive = {0}
        for index, step in enumerate(self.steps):
            alive = {value for value in alive if self._needed(value, index)}
            yield step, frozenset().union(*(self.sources(value) for value in alive))
            alive.update(step.makes)

    def read_by(self, step: Step) -> frozenset[int]:
        """Return the sources of what a step reads."""
        return frozenset().union(*(self.sources(value) for value in step.reads))

    def behind(self, step: Step, through: Iterable[int]) -> Step | None:
        """Return the layer whose output only feeds a step, or None.

        Args:
            step: The step.
            through: Layers without weights that may come between, such as an activation.
        """
        passed = set(through)
        while len(set(step.reads)) == 1:
            value = step.reads[0]
            if value not in self.maker or len(self.readers[value]) > 1:
                return None
            step = self.steps[self.maker[value]]
            if step.layer is not None and step.layer not in passed:
                return step
        return None

    def first_reader(self, step: Step, wanted: set[int]) -> int | None:
        """Return the first of the wanted layers, in order of execution, that reads a step's values and no others."""
        reached = set(step.makes)
        for later in self.steps[self.maker[step.makes[0]] + 1 :] if step.makes else []:
            if reached.issuperset(later.reads):
                if later.layer in wanted:
                    return later.layer
                reached.update(later.makes)
        return None

    def before(self, values: Iterable[int], wanted: set[int]) -> int | None:
        """Return the last of the wanted layers, in order of execution, from which values come without another one."""
        found: list[int] = []
        pending, seen = list(values), set()
        while pending:
            value = pending.pop()
            if value in seen or value not in self.maker:
                continue
            seen.add(value)
            step = self.steps[self.maker[value]]
            if step.layer in wanted:
                found.append(step.layer)
            else:
                pending.extend(step.reads)
        return max(found, default=None)
