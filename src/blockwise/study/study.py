"""A study: one backbone on one data set, from cells to records.

study = Study.from_config(cfg)     as in `python train.py`; `train_scopes` builds a study from Python objects
study.plan()                       prints the cells and their estimated cost
records = study.train()            trains the cells without a record, and returns the records of all cells
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from omegaconf import DictConfig
from rich.console import Console

from blockwise.analysis.figures import accuracy_by_block
from blockwise.analysis.sweep_table import print_table, sweep_table
from blockwise.backbone.cut import cut
from blockwise.backbone.flops import cell_flops
from blockwise.backbone.heads import new_head
from blockwise.config.checks import as_list, check_config
from blockwise.config.compose import plain
from blockwise.errors import InputError, TooFewBlocksError
from blockwise.policies import STATIC, Phase, Policy, check_policy, head_epochs, phases
from blockwise.ranking import FIRST_LOSS
from blockwise.recipe.build import make_recipe
from blockwise.recipe.losses import check_loss, check_not_balanced, with_class_counts
from blockwise.results.record import Record
from blockwise.results.store import ResultStore, settings_hash
from blockwise.search import stops_cells
from blockwise.study import prepare
from blockwise.study.plan import CellPlan, Costs, Stopwatch, describe, measure, show
from blockwise.study.runs import CellRuns, call
from blockwise.study.searching import (
    StudyTrials,
    check_epochs,
    check_top,
    describe_search,
    expected_share,
    in_step,
    make_search,
    rank_blocks,
)
from blockwise.study.settings import config_settings
from blockwise.training.cells import Cell, cell_names
from blockwise.training.distributed import broadcast, init_process_group, rank
from blockwise.training.scopes import Scope, parse_scopes
from blockwise.training.trainable import check_scope, num_trainable


@dataclass(kw_only=True)
class Study(CellRuns):
    """One backbone on one data set, ready to train cells.

    Attributes:
        scopes: The scopes to train.
        rates: Learning rates; every scope is trained at each of them.
    """

    scopes: Sequence[Scope]
    rates: Sequence[float]
    _rankings: dict[str, Mapping[str, float]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that every cell has something to train, now or when its blocks are chosen.

        Raises:
            InputError: There are too few single blocks for a `top` scope; or a scope, a policy or the warm-up does not
                fit.
        """
        epochs = int(self.settings["trainer"]["max_epochs"])
        for scope in self.scopes:
            check_scope(scope, self.staged.partition, self.backbone.network, self.backbone.name)
            for name, policy in self.recipe.policies.items():
                # the blocks of a `top` scope are not known yet, but their number is
                check_policy(name, policy, scope.blocks or tuple(range(scope.top or 0)), epochs)
                self._tell_what_stays(scope, name, policy, epochs)
        classes = len(self.data.classes)
        if not self.data.knows_labels:
            check_not_balanced(self.recipe.loss)
        check_loss(with_class_counts(self.recipe.loss, [1] * classes), classes, mixed=self.data.mixed)
        if self.recipe.scheduler is not None:
            rates = [*self.rates, *map(self._lowest, self.rates)]
            self.recipe.scheduler.check(self.optimizer, rates, epochs, self.data.batches()["train"])
        if self.staged.whole and stops_cells(self.search):
            name = (describe_search(self.search) or {})["name"]
            raise InputError(
                f"search={name} compares cells that train side by side, but those of {self.backbone.name} train one "
                "after another: choose search=exhaustive, topdown, ranked or greedy"
            )
        block = next((scope.blocks for scope in self.scopes if scope.name.isdigit()), None)
        policies = self.recipe.policies if block is not None and stops_cells(self.search) else {}
        alone = {name: head_epochs(own, block or (), epochs) for name, own in policies.items()}
        check_epochs(self.search, epochs, alone)
        self._tell_what_is_kept()
        top_scopes = [scope for scope in self.scopes if scope.top is not None]
        if not top_scopes:
            return
        check_top(self.search, max(scope.top or 0 for scope in top_scopes))
        own = {scope.name for scope in self.scopes if scope.name.isdigit()}
        single = min((own | self._single_blocks(policy) for policy in self.recipe.policies), key=len)
        for scope in top_scopes:
            if len(single) < (scope.top or 0):
                raise InputError(
                    f"block={scope.name} needs {scope.top} single blocks to choose from, but this sweep has "
                    f"{len(single)}: train more single blocks first, or in the same run: 'block=[all,{scope.name}]'"
                )

    def _lowest(self, rate: float) -> float:
        """Return the rate of the block that is farthest from the head in a scope of several blocks."""
        if self.recipe.block_lr is None or not any(scope.blocks or scope.top for scope in self.scopes):
            base = rate
        else:
            base = self.recipe.block_lr
        # the blocks of a `top` scope may be anywhere
        joint = [scope.blocks or (0,) for scope in self.scopes if len(scope.blocks) > 1 or (scope.top or 0) > 1]
        heights = [len(self.staged.partition) - min(blocks) for blocks in joint]
        return base * (self.recipe.layer_decay or 1.0) ** max(heights, default=0)

    def _tell_what_is_kept(self) -> None:
        blocks = sum(scope.name.isdigit() for scope in self.scopes)
        keep = getattr(self.search, "keep", None)
        if isinstance(keep, int) and keep >= blocks > 0:
            self.console.print(f"search.keep={keep} leaves out none of the {blocks} blocks", highlight=False)

    def _tell_what_stays(self, scope: Scope, name: str, policy: Policy, epochs: int) -> None:
        reached = {block for phase in phases(policy, scope.blocks, epochs) for block in phase.blocks}
        if len(reached) < len(scope.blocks):
            self.console.print(
                f"policy={name} reaches {len(reached)} of the {len(scope.blocks)} blocks of {scope.name} in {epochs} "
                "epochs",
                highlight=False,
            )

    @classmethod
    def from_config(cls, cfg: DictConfig, console: Console | None = None) -> Study:
        """Build the study of a composed config; images are not decoded yet.

        Raises:
            InputError: A setting, the data or the weights are invalid.
        """
        console = console or Console(markup=False, quiet=rank() > 0)
        settings = plain(cfg)
        check_config(settings)
        trainer = prepare.make_trainer(cfg, logger=False)
        init_process_group(trainer.strategy.root_device)
        prepare.hint_at_precision(console, trainer)
        optimizer = prepare.make_optimizer(cfg)
        recipe = make_recipe(settings)
        search = make_search(settings["search"])
        loggers = prepare.open_loggers(cfg) if rank() == 0 and not cfg.plan else []
        store = ResultStore(cfg.results_dir)
        # what can be checked on this machine comes before a download
        data = prepare.make_data(cfg, prepare.make_images(cfg))
        prepare.check_before_download(cfg)
        console.print(f"loading {cfg.model.name}", style="dim", highlight=False)  # a download may take minutes
        backbone = prepare.make_backbone(cfg)
        partition = cut(backbone.network, backbone.images.size, cfg.partition, cfg.model)
        last = settings["search"].get("then")
        wanted = settings["block"] if last is None else [*as_list(settings["block"]), *as_list(last)]
        scopes = parse_scopes(wanted, len(partition), backbone.name)
        return cls(
            backbone=backbone,
            staged=prepare.make_stages(backbone, partition, console),
            data=data,
            scopes=scopes,
            rates=[float(rate) for rate in as_list(settings["optimizer"]["lr"])],
            optimizer=optimizer,
            trainer=partial(prepare.make_trainer, cfg),
            settings=config_settings(settings, backbone, data, partition),
            store=store,
            loggers=loggers,
            recipe=recipe,
            search=search,
            checkpoint_minutes=cfg.checkpoint.every_minutes,
            keep_bytes=int(1e9 * cfg.cache.activations_gb),
            cells_at_once=cfg.gpu.cells_at_once,
            tf32=bool(cfg.gpu.tf32),
            console=console,
        )

    def cells(self, scopes: Iterable[Scope] | None = None, policies: Iterable[str] | None = None) -> list[Cell]:
        """Return the cells of the given scopes, or of all scopes: each at each learning rate under each policy.

        `head` has no blocks, so it is the same under each policy and trains once.
        """
        cells = [
            self._cell(scope, rate, policy if scope.blocks or scope.top else STATIC)
            for policy in (self.recipe.policies if policies is None else policies)
            for scope in (self.scopes if scopes is None else scopes)
            for rate in self.rates
        ]
        return list(dict.fromkeys(cells))

    def _cell(self, scope: Scope, rate: float, policy: str) -> Cell:
        return Cell(scope, rate, policy, settings_hash(settings) if (settings := self._policy_settings(policy)) else "")

    def train(self, *, retrain: bool = False) -> list[Record]:
        """Train the cells without a record, and return the records of all cells.

        Cells train side by side. If another process trains a cell, this one waits for it. Interrupted training resumes
        from its checkpoint.

        Args:
            retrain: Also train cells that have a record; the new record replaces the old one.

        Raises:
            InputError: Images cannot be read, or Lightning refuses the settings.
            TooFewBlocksError: Too few blocks have trained to their end for a scope such as `top3`; all others have.
            Interrupted: A signal interrupted training; a checkpoint is saved.
        """
        self.data.tell(self.console)
        single = [scope.name for scope in self.scopes if scope.top is None]
        trials = {p: StudyTrials(partial(self.sweep, p), self.ranking) for p in self.recipe.policies}
        rounds = {policy: self.search.rounds(single, own) for policy, own in trials.items()}
        records: dict[str, Record] = {}
        for asked in in_step(rounds) if single else ():
            cells = [cell for p, names in asked.items() for cell in self.cells(self._scopes(names), [p])]
            records |= self.train_cells(list(dict.fromkeys(cells)), retrain=retrain)
        too_few: list[TooFewBlocksError] = []
        for scope in (scope for scope in self.scopes if scope.top is not None):
            for policy in self.recipe.policies:
                try:
                    resolved = scope.resolve(self._best_blocks(policy, scope.top or 0))
                except TooFewBlocksError as error:
                    too_few.append(error)
                else:
                    records |= self.train_cells(self.cells([resolved], [policy]), retrain=retrain)
        if too_few:
            raise too_few[0]
        return list(records.values())

    def _scopes(self, names: Sequence[str]) -> list[Scope]:
        """Return the scopes that a search names."""
        known = {scope.name: scope for scope in self.scopes}
        new = [name for name in names if name not in known]
        known |= {s.name: s for s in parse_scopes(new, len(self.staged.partition), self.backbone.name)} if new else {}
        return [known[name] for name in names]

    def _best_blocks(self, policy: str, top: int) -> list[int]:
        """Return the best single blocks.

        Raises:
            TooFewBlocksError: Too few of them have trained to their end.
        """
        sweep = self.sweep(policy)
        # other processes must not read the records at another time
        best: list[int] = broadcast([row.blocks[0] for row in sweep.single_blocks] if sweep else [])
        if len(best) < top:
            under = "" if policy == STATIC else f" under policy={policy}"
            reason = "diverged" if self.searched is None else "diverged, or the search stopped them"
            raise TooFewBlocksError(
                f"block=top{top} needs {top} single blocks that have trained to their end, but this sweep has "
                f"{len(best)}{under}: the others {reason}"
            )
        return best[:top]

    def ranking(self, score: str) -> Mapping[str, float]:
        """Return a score of each single block before any training, higher is better; see `blockwise.ranking`."""
        if score not in self._rankings:
            self._rankings |= self.rankings([score])
        return self._rankings[score]

    def rankings(self, scores: Sequence[str]) -> dict[str, Mapping[str, float]]:
        """Return several scores of each single block, by the name of the score."""
        self.data.prepare(self.console)
        device = self.trainer(logger=False).strategy.root_device
        found = rank_blocks([name for name in scores if name != FIRST_LOSS], self.staged, self.data, device)
        if FIRST_LOSS in scores:
            found[FIRST_LOSS] = self._first_loss()
        return broadcast({name: found[name] for name in scores})

    def _first_loss(self) -> Mapping[str, float]:
        """Return minus the training loss of one epoch of each single block, at its best learning rate."""
        scopes = [scope for scope in self.scopes if scope.name.isdigit()]
        # schedules need the real number of epochs, and policies may begin with the head alone
        module = self.module(
            self.cells(scopes, [STATIC]), replace(self.recipe, loss=self.loss(), scheduler=None, policies={})
        )
        trainer = self.trainer(logger=False, callbacks=self.data.callbacks(), max_epochs=1)
        call(trainer, trainer.fit, module, datamodule=self.data.module)
        losses: dict[str, float] = {}
        for cell, progress in zip(module.cells, module.progress, strict=True):
            loss = progress.history[0]["train"]["loss"]
            losses[cell.scope.name] = min(
                loss if math.isfinite(loss) else math.inf, losses.get(cell.scope.name, math.inf)
            )
        return {scope: -loss for scope, loss in losses.items()}

    def _single_blocks(self, policy: str) -> set[str]:
        """Return the names of the recorded single blocks."""
        sweep = self.sweep(policy)
        return {row.scope for row in sweep.single_blocks} if sweep else set()

    def report(self) -> None:
        """Print the table of the sweep over all seeds, and save a plot of accuracy by block; for each policy."""
        for policy in self.recipe.policies:
            if (sweep := self.sweep(policy, all_seeds=True)) is None:
                continue
            print_table(self.console, sweep_table(sweep))
            if sweep.best is not None:
                path = self.store.sweep_folder(self.settings) / f"accuracy-by-block-{sweep.key}.png"
                accuracy_by_block([sweep]).savefig(path, dpi=150)
                self.console.print(f"Accuracy by block: {path}", soft_wrap=True, highlight=False)

    def plan(self) -> tuple[list[CellPlan], Costs]:
        """Print and return the cells that `train` would train and their estimated cost, timed on steps with noise."""
        partition, cells = self.staged.partition, self.cells()
        # the best blocks are not known before the others have trained
        parts = [[cell for cell in cells if (cell.scope.top is None) == single] for single in (True, False)]
        to_train = {cell for part in parts for cell in self.missing(part)}
        head = new_head(self.staged, len(self.data.classes), self.backbone.head)
        width = sum(parameter.numel() for parameter in head.parameters())
        plans = [
            describe(
                name,
                cell,
                self._phases(cell),
                partition,
                recorded=cell not in to_train,
                # each image is in the training images of all networks of a cell but one
                networks=self.data.folds or 1,
                trainable=width + num_trainable(cell.scope, partition, self.backbone.network),
            )
            for name, cell in zip(cell_names(cells), cells, strict=True)
        ]
        missing = [
            cell for cell, plan in zip(cells, plans, strict=True) if not plan.recorded and plan.flops is not None
        ]
        costs = self._measure(missing) if missing else Costs()
        show(self.console, f"{self.title}, {len(partition)} blocks", plans, costs)
        if self.searched is not None:
            self.console.print(self._expected_cost(), highlight=False)
        return plans, costs

    def _expected_cost(self) -> str:
        """Say what the search is expected to cost."""
        partition, epochs = self.staged.partition, int(self.settings["trainer"]["max_epochs"])
        names = [scope.name for scope in self.scopes if scope.top is None]

        def flops(name: str) -> int:
            (scope,) = self._scopes([name])
            return cell_flops(partition, scope.blocks, scope.blocks, whole=scope.part == "all")

        share = expected_share(self.search, names, self.rates, epochs, flops)
        return (
            f"search={(self.searched or {})['name']}: about {100 * share:.0f} % of the cells' own operations, if no "
            "difference is significant"
        )

    def _phases(self, cell: Cell) -> list[Phase]:
        """Return what trains in each epoch."""
        return phases(self.recipe.policy(cell.policy), cell.scope.blocks, int(self.settings["trainer"]["max_epochs"]))

    def _measure(self, cells: list[Cell]) -> Costs:
        side_by_side = cells[:1] if self.staged.whole else cells
        trainer = self.trainer(logger=False, callbacks=[Stopwatch()], max_epochs=1, devices=1, strategy="auto")
        epochs = self.trainer(logger=False).max_epochs or 1
        # the most expensive epoch of every policy; schedules need the real number of steps
        # noise has no classes to balance
        loss = with_class_counts(self.recipe.loss, [1] * len(self.data.classes))
        recipe = replace(self.recipe, loss=loss, scheduler=None, policies={})
        costs = measure(
            self.module([replace(cell, policy=STATIC) for cell in side_by_side], recipe, noise=True),
            trainer,
            self.data.image_size,
            self.data.batch_size(),
            self.data.batches(),
            epochs,
        )
        if self.staged.whole:  # cells train one after another
            costs = replace(costs, seconds=len(cells) * costs.seconds, disk_bytes=len(cells) * costs.disk_bytes)
        return costs
