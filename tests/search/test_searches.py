"""Searches on made-up cells: who stops, and in which order scopes train."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_rel

from blockwise.errors import InputError
from blockwise.search import Candidate, Exhaustive, FirstEpoch, Greedy, Halving, Racing, Ranked, TopDown
from blockwise.search.racing import not_worse, paired_t

SCOPES = ["head", *map(str, range(6)), "full"]


def cell(scope, accuracy=0.5, *, lr=0.1, flops=10, loss=1.0, train=1.0, correct=None, likelihood=None):
    val = {"loss": loss, **dict.fromkeys(("top1", "macro_f1", "probability"), accuracy)}
    epoch = {"train": {"loss": train, "top1": 1.0}, "val": val}
    correct = np.arange(100) < 100 * accuracy if correct is None else correct
    likelihood = np.full(100, -loss) if likelihood is None else likelihood
    return Candidate(f"{scope}@{lr:g}", scope, "static", lr, flops, [epoch], 0, "top1", correct, likelihood)


def going_on(search, cells, epoch=1, max_epochs=8):
    stopped = set(search.stop(cells, epoch, max_epochs))
    assert stopped <= {c.key for c in cells}
    return [c.key for c in cells if c.key not in stopped]


def blocks(*accuracies, **options):
    return [cell(str(block), accuracy, **options) for block, accuracy in enumerate(accuracies)]


@pytest.mark.parametrize(
    ("settings", "max_epochs", "rungs"),
    [({}, 10, [1, 2, 4, 8]), ({"min_epochs": 2, "factor": 3}, 20, [2, 6, 18]), ({"factor": 2.5}, 10, [1, 3, 7])],
)
def test_rungs_are_further_and_further_apart(settings, max_epochs, rungs):
    assert Halving(**settings).rungs(max_epochs) == rungs


def test_halving_lets_rates_compete_within_a_scope_and_then_blocks():
    cells = [
        cell(scope, accuracy, lr=lr)
        for lr, better in ((0.1, 0.1), (0.2, 0))
        for scope, accuracy in (
            ("head", 0.3 + better),
            ("0", 0.5 + better),
            ("1", 0.7 - better),
            ("full", 0.4 + better),
        )
    ]
    # half of the rates are half of the cost: every block goes on at its better rate
    assert going_on(Halving(), cells) == ["head@0.1", "0@0.1", "full@0.1", "1@0.2"]
    left = [c for c in cells if c.key in ("head@0.1", "0@0.1", "full@0.1", "1@0.2")]
    # then half of the blocks; a single cell of head or full goes on
    assert going_on(Halving(), left, epoch=2) == ["head@0.1", "full@0.1", "1@0.2"]
    assert going_on(Halving(), left, epoch=3) == [c.key for c in left]


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 50)), min_size=1, max_size=12),
    st.sampled_from([2, 3]),
    st.integers(1, 3),
)
def test_halving_keeps_to_its_budget_and_never_drops_the_best(made_up, factor, keep):
    cells = [cell(str(i), accuracy / 100, flops=flops) for i, (accuracy, flops) in enumerate(made_up)]
    kept = going_on(Halving(factor=factor, keep=keep), cells)
    cost = sum(c.flops for c in cells if c.key in kept)
    assert cost <= sum(c.flops for c in cells) / factor or len(kept) == min(keep, len(cells))
    best = max(c.history[0]["val"]["top1"] for c in cells)
    assert max(c.history[0]["val"]["top1"] for c in cells if c.key in kept) == best


def test_first_epoch_keeps_the_best_blocks_at_their_best_rates():
    cells = [*blocks(0.1, 0.5, 0.6, 0.4, lr=0.1), *blocks(0.55, 0.2, 0.3, 0.1, lr=0.2), cell("full"), cell("head")]
    assert going_on(FirstEpoch(keep=2), cells) == ["2@0.1", "0@0.2", "full@0.1", "head@0.1"]
    assert going_on(FirstEpoch(keep=2), cells, epoch=2) == [c.key for c in cells]


@pytest.mark.parametrize("judge", ["top1", "macro_f1", "loss", "probability", "train_loss", "select_by"])
def test_a_judge_sees_its_own_metric(judge):
    metric = {"loss": "loss", "train_loss": "train"}.get(judge)
    good = {metric: 0.5} if metric else {"accuracy": 0.9}
    poor = {metric: 0.6} if metric else {"accuracy": 0.8}
    others = {} if metric else {"loss": 9.0, "train": 9.0}
    cells = [cell("0", **poor), cell("1", **{**others, **good})]
    assert going_on(FirstEpoch(keep=1, judge=judge), cells) == ["1@0.1"]


def test_training_loss_does_not_favour_a_cell_that_stopped_early():
    cells = [cell("0", train=0.5), cell("1", train=0.4)]
    early, late = (replace(c, history=count * list(c.history)) for c, count in zip(cells, (2, 4), strict=True))
    assert going_on(FirstEpoch(keep=1, judge="train_loss"), [early, late], epoch=1) == ["1@0.1"]


def test_ties_are_broken_by_loss_then_the_block_next_to_the_head():
    cells = [cell("0", 0.5, loss=0.4), cell("1", 0.5, loss=0.5), cell("2", 0.5, loss=0.5)]
    assert going_on(FirstEpoch(keep=1), cells) == ["0@0.1"]
    assert going_on(FirstEpoch(keep=2), cells) == ["0@0.1", "2@0.1"]


def test_racing_stops_what_is_significantly_worse():
    correct = {"0": 95, "1": 90, "2": 80}
    cells = [cell(scope, n / 100, correct=np.arange(100) < n) for scope, n in correct.items()]
    # of 5 images on which they differ, block 0 wins all: p = 1/32; of 15: 2^-15
    assert going_on(Racing(level=0.05, min_epochs=1), cells) == ["0@0.1"]
    assert going_on(Racing(level=0.01, min_epochs=1), cells) == ["0@0.1", "1@0.1"]
    assert going_on(Racing(level=0.05, min_epochs=2), cells) == [c.key for c in cells]


def test_a_race_by_probability_tests_probabilities():
    probabilities = np.linspace(0.2, 0.9, 100)
    cells = [cell(str(i), 0.9 - i / 20, likelihood=np.log(probabilities * (1 - i / 10))) for i in range(2)]
    cells[1] = replace(cells[1], correct=cells[0].correct)
    assert going_on(Racing(min_epochs=1, judge="probability"), cells) == ["0@0.1"]
    assert going_on(Racing(min_epochs=1, judge="top1"), cells) == ["0@0.1", "1@0.1"]


def test_a_race_compares_at_the_epochs_that_select_by_has_chosen():
    # block 1 had the lower loss in another epoch; where it is tested, block 0 is better
    better, worse = np.full(100, -0.5), np.linspace(-3, -1, 100)
    cells = [cell("0", 0.9, loss=0.501, likelihood=better), cell("1", 0.9, loss=0.5, likelihood=worse)]
    assert going_on(Racing(min_epochs=1, judge="loss"), cells) == ["0@0.1"]
    with pytest.raises(InputError, match="search.judge=train_loss is no judge of a race: choose select_by, top1"):
        Racing(judge="train_loss")


def test_in_a_race_blocks_compare_at_their_best_rates_and_baselines_only_with_themselves():
    cells = [cell("head", 0.1), cell("0", 0.9, lr=0.1), cell("0", 0.4, lr=0.2), cell("1", 0.5), cell("1", 0.45, lr=0.2)]
    assert going_on(Racing(min_epochs=1), cells) == ["head@0.1", "0@0.1"]


def test_tests_agree_with_scipy():
    random = np.random.default_rng(0)
    first, second = random.random((2, 60)) < [[0.6], [0.75]]
    differ = first != second
    assert not_worse(first, second) == pytest.approx(
        binomtest(int(first[differ].sum()), int(differ.sum()), alternative="less").pvalue
    )
    one, other = random.normal(size=(2, 60))
    assert paired_t(one - other) == pytest.approx(ttest_rel(one, other, alternative="less").pvalue)
    assert paired_t(np.zeros(5)) == paired_t(np.ones(1)) == not_worse(first, first) == 1.0


class Finished:
    """Trials that have finished as soon as they are asked for."""

    def __init__(self, scores, ranking=None):
        self.scores, self.ranks = scores, ranking

    def score(self, scope):
        value = self.scores(scope)
        return None if value is None else (value, 0.0)

    def ranking(self, score):
        assert score == "gradient_norm"
        return self.ranks


def rounds(search, scores=lambda scope: 0.0, scopes=SCOPES, ranking=None):
    return [list(scopes) for scopes in search.rounds(scopes, Finished(scores, ranking))]


def test_exhaustive_trains_all_in_one_round():
    assert rounds(Exhaustive()) == [SCOPES]


def test_topdown_goes_towards_the_input_until_nothing_is_better():
    accuracy = {"5": 0.5, "4": 0.6, "3": 0.6, "2": None, "1": 0.9}
    assert rounds(TopDown(patience=2), accuracy.get) == [["head", "full", "5"], ["4"], ["3"], ["2"]]
    assert rounds(TopDown(patience=3), accuracy.get)[-2:] == [["1"], ["0"]]
    assert rounds(TopDown(), accuracy.get, ["head", "norms"]) == [["head", "norms"]]


def test_ranked_trains_what_a_score_puts_first():
    ranking = dict(zip("012345", (3, 1, 5, 2, 4, 0), strict=True))
    assert rounds(Ranked("gradient_norm", keep=2), ranking=ranking) == [["head", "2", "4", "full"]]
    assert rounds(Ranked("gradient_norm", keep=6)) == [SCOPES]


def test_greedy_adds_the_block_that_helps_most():
    gains = dict(zip("012345", (1, 2, 8, 3, 16, 4), strict=True))

    def score(scope):
        return sum(gains[block] for block in scope.split("+"))

    found = rounds(Greedy(epsilon=3), score)
    assert found[0] == SCOPES
    assert found[1] == ["0+4", "1+4", "2+4", "3+4", "4+5"]
    assert found[2] == ["0+2+4", "1+2+4", "2+3+4", "2+4+5"]
    # 5 gains 4, which is more than 3; then 3 gains 3, which is not
    assert found[3] == ["0+2+4+5", "1+2+4+5", "2+3+4+5"]
    assert len(found) == 4
    assert len(rounds(Greedy(most=2), score)) == 2
    assert rounds(Greedy(most=1), score) == [SCOPES]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Halving(factor=1.5), "search.factor=1.5 must be a number of at least 2"),
        (lambda: Halving(factor=float("nan")), "search.factor=nan must be"),
        (lambda: Halving(min_epochs=0), "search.min_epochs=0 must be an integer of at least 1"),
        (lambda: Halving(keep=True), "search.keep=True must be an integer"),
        (lambda: Halving(judge="luck"), "search.judge=luck is unknown: choose select_by, top1"),
        (lambda: FirstEpoch(keep=0), "search.keep=0 must be an integer of at least 1"),
        (lambda: Racing(level=1, min_epochs=1), "search.level=1 must be a number between 0 and 1"),
        (lambda: Racing(level="x"), "search.level=x must be a number between 0 and 1"),
        (lambda: TopDown(patience=0), "search.patience=0 must be an integer of at least 1"),
        (lambda: Ranked("probe", keep=0), "search.keep=0 must be an integer of at least 1"),
        (lambda: Greedy(epsilon=-1), "search.epsilon=-1 must be a number of at least 0"),
        (lambda: Greedy(most=0), "search.most=0 must be an integer of at least 1"),
    ],
)
def test_a_wrong_setting_is_named(make, sentence):
    with pytest.raises(InputError, match=sentence.replace(".", r"\.")):
        make()
