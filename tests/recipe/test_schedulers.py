"""Learning rates at each step, compared with closed forms."""

import math
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, ReduceLROnPlateau, StepLR

from blockwise.errors import InputError
from blockwise.recipe.build import make_schedule
from blockwise.recipe.schedulers import Schedule, constant, cosine, onecycle, step

EPOCHS, STEPS = 6, 5
TOTAL = EPOCHS * STEPS


def optimizer_of(kind=torch.optim.AdamW, rates=(0.1, 0.02), **options):
    return kind([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], **options)


def rates_of(schedule, optimizer=None):
    """Return the rate of each group at every step of training."""
    optimizer = optimizer or optimizer_of()
    scheduler = schedule(optimizer, EPOCHS, STEPS)
    rates = []
    for number in range(TOTAL):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        if schedule.interval == "step" or (number + 1) % STEPS == 0:
            scheduler.step()
    return rates


def assert_rates(schedule, factor, **options):
    for number, rates in enumerate(rates_of(schedule, **options)):
        assert rates == pytest.approx([0.1 * factor(number), 0.02 * factor(number)], rel=1e-6, abs=1e-9), number


def test_constant_after_a_warm_up():
    assert_rates(Schedule(constant), lambda _: 1)
    assert_rates(Schedule(constant, warmup=2), lambda n: min(1, (n + 1) / 11))
    assert_rates(Schedule(constant, warmup=0.5), lambda n: min(1, (n + 1) / 4))  # 2.5 steps, rounded up
    assert_rates(Schedule(constant, warmup=7, warmup_unit="step"), lambda n: min(1, (n + 1) / 8))


def test_cosine():
    half = TOTAL - STEPS
    assert_rates(Schedule(cosine), lambda n: (1 + math.cos(math.pi * n / TOTAL)) / 2)
    warm = Schedule(cosine, warmup=1)
    assert_rates(warm, lambda n: (n + 1) / 6 if n < STEPS else (1 + math.cos(math.pi * (n - STEPS) / half)) / 2)


def test_step():
    schedule = Schedule(partial(step, every=2, gamma=0.5))
    assert_rates(schedule, lambda n: 0.5 ** (n // (2 * STEPS)))
    assert_rates(
        Schedule(partial(step, every=2, gamma=0.5), warmup=1),
        lambda n: (n + 1) / 6 if n < STEPS else 0.5 ** ((n - STEPS) // (2 * STEPS)),
    )


@pytest.mark.parametrize("kind", [torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9), torch.optim.Adagrad])
def test_onecycle_rises_and_falls(kind):
    rates = [first for first, _ in rates_of(Schedule(onecycle), optimizer_of(kind))]
    top = rates.index(max(rates))
    assert rates[0] == pytest.approx(0.1 / 25)
    assert max(rates) == pytest.approx(0.1)
    assert abs(top - 0.3 * TOTAL) <= 1
    assert rates == [*sorted(rates[: top + 1]), *sorted(rates[top + 1 :], reverse=True)]
    assert rates[-1] < 0.1 / 100


def test_step_counts_epochs_either_way():
    for interval in ("step", "epoch"):
        assert_rates(
            Schedule(partial(step, every=2, gamma=0.5), interval=interval), lambda n: 0.5 ** (n // (2 * STEPS))
        )


def test_one_of_pytorchs_after_each_epoch():
    exponential = partial(ExponentialLR, gamma=0.5)
    assert_rates(Schedule(exponential, interval="epoch"), lambda n: 0.5 ** (n // STEPS))
    warm = Schedule(exponential, interval="epoch", warmup=2)
    assert_rates(warm, lambda n: (n // STEPS + 1) / 3 if n < 2 * STEPS else 0.5 ** (n // STEPS - 2))


def test_a_state_continues_where_it_was():
    for schedule in (Schedule(cosine, warmup=1), Schedule(onecycle), Schedule(partial(step, every=1))):
        whole = rates_of(schedule)
        first = optimizer_of()
        scheduler = schedule(first, EPOCHS, STEPS)
        for _ in range(8):
            first.step()
            scheduler.step()
        second = optimizer_of()
        again = schedule(second, EPOCHS, STEPS)
        second.load_state_dict(first.state_dict())
        again.load_state_dict(scheduler.state_dict())
        for number in range(8, TOTAL):
            assert [group["lr"] for group in second.param_groups] == whole[number]
            second.step()
            again.step()


def test_the_default_is_no_schedule():
    base = {"_partial_": True, "warmup": 0, "warmup_unit": "epoch", "interval": "step"}
    target = "blockwise.recipe.schedulers.constant"
    assert make_schedule({**base, "_target_": target}) is None
    assert make_schedule({**base, "_target_": target, "warmup": 1}).warmup == 1


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda: Schedule(cosine, warmup=6), "scheduler.warmup=6 epochs is not shorter than training"),
        (lambda: Schedule(cosine, warmup=30, warmup_unit="step"), "scheduler.warmup=30 steps is not shorter"),
        (lambda: Schedule(cosine, warmup=1.5, warmup_unit="step"), "must be a whole number of steps"),
        (lambda: Schedule(cosine, warmup=1.5, interval="epoch"), "must be a whole number of epochs"),
        (lambda: Schedule(cosine, warmup=3, warmup_unit="step", interval="epoch"), "does not fit"),
        (lambda: Schedule(partial(ReduceLROnPlateau)), "ReduceLROnPlateau cannot be used"),
        (lambda: Schedule(ExponentialLR), "the scheduler cannot be created"),
        (lambda: Schedule(partial(cosine, min_lr="abc")), "scheduler.min_lr=abc must be between 0 and the lowest"),
        (lambda: Schedule(partial(cosine, min_lr=1)), "scheduler.min_lr=1 must be between 0 and the lowest"),
        (lambda: Schedule(partial(onecycle, rise=1)), "scheduler.rise=1 must be a number between 0 and 1"),
        (lambda: Schedule(partial(step, every=0)), "scheduler.every=0 must be an integer of at least 1"),
        (lambda: Schedule(partial(step, every=1, gamma=-1)), "scheduler.gamma=-1 must be greater than 0"),
        (lambda: Schedule(partial(cosine, every=1)), "the scheduler has no setting every: its settings are"),
        (lambda: Schedule(partial(StepLR, step_size=0)), "the scheduler fails at step 0 .integer modulo by zero"),
        (lambda: Schedule(partial(LambdaLR, lr_lambda=lambda n: -n)), "sets the rate to -0.001 at step 1"),
        (lambda: Schedule(cosine, warmup=float("nan")), "scheduler.warmup=nan must be a number of at least 0"),
        (lambda: Schedule(cosine, warmup=-1), "scheduler.warmup=-1 must be a number of at least 0"),
        (lambda: Schedule(cosine, interval="x"), "scheduler.interval=x must be epoch or step"),
        (lambda: Schedule(None), "None cannot be called with an optimizer"),
        (lambda: Schedule(lambda optimizer: None), "NoneType cannot be used"),
    ],
)
def test_what_cannot_be_is_one_sentence(schedule, message):
    with pytest.raises(InputError, match=message):
        schedule().check(torch.optim.AdamW, [1e-3], EPOCHS, STEPS)
