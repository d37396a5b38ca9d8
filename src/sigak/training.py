"""Train: a network's name and data in, a run folder out.

This verb is the only file that knows the distributed engine (Accelerate over torch.distributed). A
step's randomness is a function of (seed, epoch, step, process), never of what ran before, so a
resumed run needs no generator state and ends with the same weights as one that was never cut off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sigak import data, foreign, models, optimize, runs, tasks
from sigak.augment.pipeline import Pipeline
from sigak.callbacks import Callback, ModelCheckpoint, asked_for, restore, states
from sigak.data import Dataset
from sigak.data.domains import TARGET
from sigak.data.feed import Feed, Pictures, Step
from sigak.data.patches import Volumes
from sigak.evaluation import mistakes
from sigak.io import image
from sigak.io import weights as files
from sigak.layers.memory import keep_freed_memory
from sigak.losses import l2_penalty
from sigak.prediction import Assessment, assess
from sigak.progress import Progress, figures
from sigak.recipe import Options, Recipe
from sigak.report import write as write_report
from sigak.runs import RESUME, RunFolder
from sigak.runtime import TorchEngine, pick_device, pick_precision, seed_step
from sigak.structures import Batch, Failure, SigakError

__all__ = ["Run", "Training", "train"]

ADAPT = 1000  # training pictures shown to a network that measures them first

# (optimiser name, objective, shown scalars) of a task's steps in turn
Losses = Iterator[tuple[str, Tensor, dict[str, Tensor]]]


@dataclass
class Run:
    """A finished training. history: one array a figure, by epoch; checkpoint: the best weights."""

    folder: Path
    checkpoint: Path
    history: dict[str, np.ndarray]
    best_epoch: int
    evaluation: dict[str, Any]


def train(
    model: str,
    dataset: str | Path | Dataset,
    *,
    callbacks: Sequence[Callback] = (),
    **changes: Any,
) -> Run:
    """Train the network called `model` on `dataset` (a name, a folder, or a Dataset).

    changes: any field of `Recipe` or `Options`. The network's own recipe stands where nothing is
    said. callbacks: beside those the options ask for.
    """
    known = {f.name for f in fields(Options)}
    asked = {k: v for k, v in changes.items() if k in known}
    said = {k: v for k, v in changes.items() if k not in known}
    entry = models.entry(model)
    recipe = Recipe.of(entry.recipe, said)
    optimize.check(recipe)
    command = runs.repeat_command(model, dataset, changes)
    earlier = runs.resumed(asked.get("resume", ""), model, said)
    if earlier:
        asked = earlier["options"] | asked
        recipe = Recipe.of(earlier["recipe"], {"epochs": recipe.epochs} if "epochs" in said else {})
        command = earlier["command"]
    options = Options(**asked)
    dataset = runs.loaded(dataset, model, recipe, options)
    with torch.random.fork_rng():
        return Training(model, dataset, recipe, options, callbacks, command).fit()


class Training:
    """One run: the network, its data, its optimisers, and where it stands."""

    def __init__(
        self,
        model: str,
        dataset: Dataset,
        recipe: Recipe,
        options: Options,
        callbacks: Sequence[Callback],
        command: str = "",
    ) -> None:
        self.name, self.dataset, self.recipe, self.options = model, dataset, recipe, options
        self.command = command
        self.entry = models.entry(model)
        self.task = tasks.create(self.entry.task, dataset.classes, recipe, dataset.palette)
        device = pick_device(options.device)
        self.accelerator = Accelerator(cpu=device.type == "cpu")
        self.world = self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.share = (self.accelerator.process_index, self.world)
        self.device = device if self.world == 1 else self.accelerator.device
        chosen = [runs.choose_folder(options, model, dataset.name)]
        broadcast_object_list(chosen)  # the main process's choice, in every process
        self.folder = chosen[0]
        keep_freed_memory()
        self.files = RunFolder(self.folder)
        self.progress = Progress(visible=self.main and not options.quiet)
        self.exact = torch.float32 if self.device.type == "mps" else torch.float64  # of sums
        self.digest = data.digest(dataset)
        self._prepare_data()
        self._prepare_network()
        watched = options.monitor or self.task.monitor(bool(self.val_feed))
        self.keeper = ModelCheckpoint(files.BEST, watched)
        self.callbacks = [self.keeper, *asked_for(options, watched, log=self.main), *callbacks]
        # Where the run stands; everything here is in the resume file.
        self.epoch, self.step = 1, 0
        self.sums: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []
        self.lr_scale = 1.0
        self.stop = False
        self.seconds = 0.0  # spent in this epoch before a restart

    # --- setting up -------------------------------------------------------------------------

    def _prepare_data(self) -> None:
        recipe = self.recipe
        self.preparation = runs.preparation(self.name, self.dataset, recipe)
        with self.progress:
            known = [n for n in ("train", TARGET, "val") if n in self.dataset.splits]
            self.pictures = {name: self._decode(name) for name in known}
        self.feed = Feed(
            self.pictures["train"],
            batch=recipe.batch,
            share=self.share,
            seed=recipe.seed,
            augment=self.task.augment(self.preparation.size),
            targets=self.pictures.get(TARGET),
        )
        val = self.pictures.get("val")
        self.val_feed = Feed(val, batch=recipe.batch, share=self.share) if val else None

    def _decode(self, name: str) -> Pictures:
        learnt = name != "val"
        preparation = self.preparation.of_one_size() if learnt else self.preparation
        threads = self.options.threads or None
        pictures = self._pictures(name, preparation, reduced=learnt, threads=threads)
        self.progress.begin(f"reading {name}", len(pictures.split))
        pictures.load(self.progress.reach, strict=self.options.strict)
        for problem in pictures.problems:
            self.progress.say(f"skipped {problem.source}: {problem.reason}")
        return pictures

    def _pictures(self, name: str, preparation: image.Preparation, **how: Any) -> Pictures:
        how |= {"device": self.device, "masks": "masks" in self.task.needs}
        kind = Volumes if preparation.depth else Pictures
        return kind(self.dataset.splits[name], preparation, self.task.collate, **how)

    def _prepare_network(self) -> None:
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        changes = foreign.built_with(self.name, self.folder / files.BEST, self.options.pretrained)
        if recipe.standardize == "data":
            changes["mean"], changes["std"] = self.pictures["train"].statistics()
        if self.preparation.depth:
            changes["depth"] = self.preparation.depth
        self.arguments = models.arguments(
            self.name,
            classes=self.task.outputs,
            size=self.preparation.size,
            color=self.preparation.color,
            **changes,
        )
        self.network = self.entry.build(**self.arguments)
        models.try_out(self.name, self.network, self.arguments)
        self.head: tuple[str, ...] = self.network.head  # type: ignore[assignment]
        pretrained = self.options.pretrained
        if pretrained and not (self.folder / RESUME).exists():
            allowed = self.options.download
            told = foreign.start_from(self.network, self.name, pretrained, allow_download=allowed)
            self.progress.say(told)
        if recipe.freeze and not pretrained:
            raise SigakError("--freeze backbone needs weights to keep: add --pretrained")
        shape = models.input_shape(self.network, self.arguments)
        self.precision = pick_precision(recipe.precision, self.device, self.network, shape)
        self.engine = TorchEngine(self.network, self.device)
        if not pretrained:
            self._look_at_data(self.network)
        self.optimizers = optimize.build_parts(self.network, self.head, recipe, bool(pretrained))
        self.average: AveragedModel | None = None
        if recipe.ema:
            average = optimize.moving_average(recipe.ema)
            self.average = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
            self.engine = TorchEngine(self.average.module, self.device)
        self.parallel: nn.Module = self.network

    def _look_at_data(self, network: Any) -> None:
        """Where a network measures training pictures before it learns: what it takes from them."""
        if hasattr(network, "adapt"):  # a resumed run overwrites it
            network.adapt(self.pictures["train"].sampled(ADAPT).floating().images)
        if hasattr(network, "fit_anchors"):
            shown = self.pictures["train"].sampled(ADAPT).instances or []
            changed, told = network.fit_anchors([one.boxes for one in shown])
            self.arguments |= changed
            self.progress.say(told)

    # --- the loop ---------------------------------------------------------------------------

    def fit(self) -> Run:
        """Train to the last epoch, then evaluate the best weights and write the report."""
        if self.options.resume:
            self._load_state()
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.files.write_json("recipe.json", runs.described(self))
        for callback in self.callbacks:
            callback.on_train_begin(self)
        try:
            with self.progress:
                while self.epoch <= self.recipe.epochs and not self.stop:
                    self._run_epoch()
        except KeyboardInterrupt as error:
            raise Failure(
                f"interrupted in epoch {self.epoch}; go on with --resume {self.folder}"
            ) from error
        for callback in self.callbacks:
            callback.on_train_end(self)
        return self._finish()

    def _run_epoch(self) -> None:
        """One epoch: all its steps, validation, callbacks, and the state that survives a crash."""
        self.set_mode()
        begun, first = time.perf_counter(), self.step
        done = first * self.recipe.batch
        self.progress.begin(
            f"epoch {self.epoch}/{self.recipe.epochs}", len(self.feed.pictures), done
        )
        for step in self.feed.epoch(self.epoch, first):
            self.train_step(step)
            self.step = step.number + 1
            now = time.perf_counter()
            rate = (self.step - first) * self.recipe.batch / (now - begun)
            self.progress.advance(step.total, f"{rate:.0f} images/s")
            if now - begun > self.options.save_every and self.world == 1:
                self.seconds += now - begun
                begun, first = now, self.step
                self._save_state()
        trained = time.perf_counter() - begun + self.seconds
        logs = self._epoch_logs(trained)
        self._end_epoch(logs)

    def train_step(self, step: Step) -> None:
        """Forward, backward and update for one batch (in `accumulate` parts)."""
        recipe = self.recipe
        seed_step(self.device, recipe.seed, self.epoch, step.number, self.share[0])
        share = self.lr_scale * optimize.factor(
            recipe, (self.epoch - 1) * self.feed.steps + step.number, self.feed.steps
        )
        self._count({"count": torch.ones((), device=self.device)}, step.own)
        parts = [(len(part), self._losses(part), n) for part, n in step.parts(recipe.accumulate)]
        while (name := self._backward(parts, step.total)) is not None:
            optimizer = self.optimizers[name]
            optimize.set_lr(optimizer, share)
            if recipe.clip:
                self.accelerator.clip_grad_norm_(self.network.parameters(), recipe.clip)
            optimizer.step()
            self.network.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.network)
        if self.device.type == "cpu" or step.number % 50 == 0:
            self._refuse_nan(step.number)

    def _backward(self, parts: Sequence[tuple[int, Losses, int]], total: int) -> str | None:
        """The gradients of the task's next step over all parts of a batch of `total` pictures; the
        name of the optimiser that shall move, None when the task has no more steps.
        """
        name = None
        for length, losses, weight in parts:
            with optimize.norms_for(self.network, length):
                found = next(losses, None)
                if found is None:
                    return None
                name, objective, shown = found
                # Processes average their gradients; this makes them the mean over the whole batch.
                self.accelerator.backward(objective * (weight * self.world / total))
                self._count(shown, weight)
        return name

    def _losses(self, batch: Batch) -> Losses:
        """(optimiser, what is minimised, what is shown) for every step of the task; the L2 penalty
        is shown apart.
        """
        steps = self.task.steps(self.parallel, batch.floating())
        while True:
            enabled = self.precision == torch.bfloat16
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
                found = next(steps, None)
                if found is None:
                    return
                name, losses = found
                objective = losses["loss"]
                if self.recipe.l2:
                    losses["l2"] = self.recipe.l2 * l2_penalty(self.network, self.head)
                    objective = objective + losses["l2"]
            yield name, objective, losses

    def _count(self, losses: Mapping[str, Tensor], weight: float) -> None:
        for name, value in losses.items():
            total = value.detach().to(self.exact) * weight
            self.sums[name] = self.sums[name] + total if name in self.sums else total

    def _refuse_nan(self, number: int) -> None:
        if not math.isfinite(float(self.sums["loss"])):
            raise Failure(
                f"the loss became NaN or infinite in epoch {self.epoch}, step {number + 1} "
                f"(learning rate {self.current_lr():.3g}); try a lower --lr, --clip 1 or "
                f"--precision float32. The best weights so far are in {self.folder}."
            )

    def set_mode(self) -> None:
        """Training mode; a kept backbone's batch norm stays in evaluation mode, let go or not."""
        recipe, augment = self.recipe, self.feed.augment
        network: Any = self.network
        network.train()
        if hasattr(network, "closing"):
            network.closing = isinstance(augment, Pipeline) and augment.closed(self.epoch)
        frozen = bool(recipe.freeze) and not (0 < recipe.unfreeze_at <= self.epoch)
        optimize.freeze(self.network, self.head, frozen=frozen, norms=bool(recipe.freeze))
        if self.world > 1 and (self.parallel is self.network or self.epoch == recipe.unfreeze_at):
            # The wrapper only learns of parameters that can move when it is made. Where there are
            # several optimisers, each step leaves the other parts without gradients.
            self.accelerator.free_memory()
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(
                find_unused_parameters=len(self.optimizers) > 1
            )
            self.parallel = self.accelerator.prepare_model(self.network)

    def _epoch_logs(self, seconds: float) -> dict[str, float]:
        if self.world > 1:  # every process has seen other pictures: take the main one's statistics
            broadcast([*self.network.buffers(), *self._evaluated().buffers()])
        reduced = {k: float(self.accelerator.reduce(v, "sum")) for k, v in self.sums.items()}
        count = reduced.pop("count")
        logs = {name: total / count for name, total in reduced.items()}
        if not math.isfinite(logs["loss"]):
            self._refuse_nan(self.step - 1)
        if self.val_feed is not None:
            scores = self._assess(self.val_feed).metric.compute(detail=False)
            logs |= {f"val_{k}": v for k, v in scores.items() if isinstance(v, float)}
        rate = count / seconds
        return logs | {"lr": self.current_lr(), "seconds": seconds, "images_per_second": rate}

    def _assess(self, feed: Feed) -> Assessment:
        """Every picture once, shared by the processes; each process gets the whole."""
        found = assess(self.engine, self.task, feed)
        if self.world > 1:
            first, *others = gather_object([found])
            for other in others:
                first.add(other)
            found = first
        return found

    def _end_epoch(self, logs: dict[str, float]) -> None:
        self.history.append({"epoch": float(self.epoch), **logs})
        self.progress.say(f"epoch {self.epoch}/{self.recipe.epochs}  {figures(logs)}")
        for callback in self.callbacks:
            note = callback.on_epoch_end(self, self.epoch, logs)
            if note:
                self.progress.say(note)
        self.epoch, self.step, self.sums, self.seconds = self.epoch + 1, 0, {}, 0.0
        if self.main:
            self.files.write_history(self.history)
            self.files.write_sheet(self.epoch - 1, self.task.sheet(self.engine, self.device))
            self._save_state()
        self.accelerator.wait_for_everyone()

    # --- what callbacks may do --------------------------------------------------------------

    def _evaluated(self) -> nn.Module:
        return self.network if self.average is None else self.average.module

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that are evaluated."""
        return {k: v.detach().clone() for k, v in self._evaluated().state_dict().items()}

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Put such a copy back."""
        self._evaluated().load_state_dict(weights)

    def current_lr(self) -> float:
        """The highest learning rate of the last step."""
        return float(max(g["lr"] for o in self.optimizers.values() for g in o.param_groups))

    def save(self, path: Path, logs: Mapping[str, float], *, weights_only: bool = False) -> None:
        """Write the evaluated weights as a checkpoint (the main process only)."""
        if not self.main:
            return
        dataset = self.dataset
        known: dict[str, Any] = {"name": dataset.name, "digest": self.digest}
        known |= {"palette": dataset.palette, "single_class": self.options.single_class}
        header = files.header(
            self.name,
            self.entry.task,
            self.arguments,
            dataset.classes,
            preparation=self.preparation.asdict(),
            recipe=self.recipe.asdict(),
            scores={} if weights_only else dict(logs),
            data=known,
        )
        files.write(path, self._evaluated().state_dict(), header)

    # --- surviving --------------------------------------------------------------------------

    def _save_state(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "average": None if self.average is None else self.average.state_dict(),
            "callbacks": states(self.callbacks),
            "sums": self.sums,
        }
        header = {
            "model": self.name,
            "data": self.digest,
            "recipe": self.recipe.asdict(),
            "options": asdict(self.options),
            "command": self.command,
            "epoch": self.epoch,
            "step": self.step,
            "history": self.history,
            "lr_scale": self.lr_scale,
            "stop": self.stop,
            "seconds": self.seconds,
        }
        self.files.save_state(state, header)

    def _load_state(self) -> None:
        saved = self.files.load_state()
        if saved is None:
            self.progress.say(f"{self.folder} holds no resume state yet: it starts anew")
            return
        state, header = saved
        if header["data"] != self.digest:
            raise SigakError(
                f"the data is not what {self.folder} was trained on (pictures were added, "
                "removed or changed); train anew with another --out"
            )
        self.network.load_state_dict(state["network"])
        for name, optimizer in self.optimizers.items():
            optimize.restore(optimizer, state["optimizers"][name])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        restore(self.callbacks, state["callbacks"])
        self.sums = {k: v.to(self.device) for k, v in state["sums"].items()}
        self.epoch, self.step, self.history = header["epoch"], header["step"], header["history"]
        self.lr_scale, self.stop = header["lr_scale"], header["stop"]
        self.seconds = header["seconds"]
        self.progress.say(f"continuing {self.folder} at epoch {self.epoch}, step {self.step + 1}")

    # --- the end ----------------------------------------------------------------------------

    def _finish(self) -> Run:
        """Measure the best weights on the test split (else val, train) and write the report."""
        best = self.folder / files.BEST
        self.accelerator.wait_for_everyone()
        self._evaluated().load_state_dict(files.read(best)[0])
        name = next(n for n in ("test", "val", "train") if n in self.dataset.splits)
        feed = self._final_feed(name)
        found = self._assess(feed)
        evaluation = {"split": name, **found.metric.compute()}
        history = {
            k: np.array([row.get(k, np.nan) for row in self.history]) for k in self.history[-1]
        }
        if self.main:
            self.files.write_json("evaluation.json", evaluation)
            wrong = mistakes(found, self.task, feed)
            story = runs.story(self, name, evaluation, history, wrong)
            write_report(self.folder / "report.html", story)
            shown = "  ".join(f"{k} {v:.4f}" for k, v in evaluation.items() if isinstance(v, float))
            self.progress.say(f"best epoch {self.keeper.best_epoch}, measured on {name}: {shown}")
            self.progress.say(f"checkpoint {best}\nreport     {self.folder / 'report.html'}")
        return Run(self.folder, best, history, self.keeper.best_epoch, evaluation)

    def _final_feed(self, name: str) -> Feed:
        if name == "val" and self.val_feed is not None:
            return self.val_feed
        pictures = self._pictures(name, self.preparation)
        return Feed(pictures.load(), batch=self.recipe.batch, share=self.share)
