"""Cross-validation: each image of the training and validation images is held out once, in one of several folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blockwise.data.samples import Sample, by_label, group_of, shuffled
from blockwise.errors import InputError


def assign_folds(
    samples: Sequence[Sample], classes: Sequence[str], folds: int, seed: int, groups: str | None = None
) -> np.ndarray:
    """Return the fold of each sample, int64, shape (samples,); every fold has nearly the same share of each class.

    Args:
        samples: The samples; the result does not depend on their order.
        classes: Class names.
        folds: Number of folds.
        seed: Seed of the assignment.
        groups: A regular expression. Samples in whose names its parentheses match the same text are in the same fold,
            such as photographs of one animal.

    Raises:
        InputError: A class has too few samples or groups, or the expression does not fit a name.
    """
    fold_of = _by_class(samples, classes, folds, seed) if groups is None else _by_group(samples, folds, seed, groups)
    folds_of_class = {label: {fold_of[sample.name] for sample in own} for label, own in by_label(samples).items()}
    for label, name in enumerate(classes):
        if len(folds_of_class.get(label, ())) < 2:
            raise InputError(
                f"data.groups={groups}: all images of class {name!r} are in one group, so no network could learn the "
                "class without them: choose smaller groups"
            )
    return np.array([fold_of[sample.name] for sample in samples], np.int64)


def check_apart(trained: Sequence[Sample], tested: Sequence[Sample], groups: str) -> None:
    """Check that no group both trains and tests.

    Raises:
        InputError: One does.
    """
    known = {group_of(sample.name, groups) for sample in trained}
    if both := [sample.name for sample in tested if group_of(sample.name, groups) in known]:
        raise InputError(
            f"data.groups={groups}: {len(both)} test images are of groups that train as well, such as {both[0]}: "
            "this data set needs another split"
        )


def _by_class(samples: Sequence[Sample], classes: Sequence[str], folds: int, seed: int) -> dict[str, int]:
    """Deal the shuffled samples of one class after another, so that all folds have the same size."""
    fold_of: dict[str, int] = {}
    members = by_label(samples)
    for label, name in enumerate(classes):
        own = shuffled(members.get(label, []), seed)
        if len(own) < folds:
            raise InputError(
                f"data.folds={folds} is too many: class {name!r} has {len(own)} images to train and to validate, so "
                f"choose 2 to {max(2, len(own))}"
            )
        for sample in own:
            fold_of[sample.name] = len(fold_of) % folds
    return fold_of


def _by_group(samples: Sequence[Sample], folds: int, seed: int, groups: str) -> dict[str, int]:
    """Put the groups, largest first, where the classes of the folds then differ least."""
    members: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.name):
        members.setdefault(group_of(sample.name, groups), []).append(sample)
    if len(members) < folds:
        raise InputError(f"data.folds={folds} is too many: data.groups={groups} finds {len(members)} groups")
    order = np.random.default_rng(seed).permutation(len(members))
    shuffled_groups = [list(members.values())[index] for index in order]
    counts = np.zeros((folds, 1 + max(sample.label for sample in samples)))
    fold_of: dict[str, int] = {}
    for own in sorted(shuffled_groups, key=len, reverse=True):
        added = np.bincount([sample.label for sample in own], minlength=counts.shape[1])
        # the sum of squares grows least where the group's classes are rarest
        fold = int(np.argmin(((counts + added) ** 2 - counts**2).sum(1)))
        counts[fold] += added
        fold_of.update((sample.name, fold) for sample in own)
    return fold_of
