"""The training loop: steps, and what happens between them."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crate_graph.cluster.groups import gather
from crate_graph.config.schema import Recipe
from crate_graph.data import Batch, PlannedLoader
from crate_graph.engine.base import Engine, MicroBatch
from crate_graph.engine.word import Report
from crate_graph.errors import RunFailed, UserError
from crate_graph.evaluation.split import evaluate_split
from crate_graph.resilience.guard import FiniteGuard, Verdict
from crate_graph.resilience.requests import Requests
from crate_graph.resilience.watchdog import Watchdog
from crate_graph.train.ema import Ema
from crate_graph.train.late import LateReader
from crate_graph.train.metrics_log import MetricsLog
from crate_graph.train.run_folder import RunFolder
from crate_graph.train.saving import Saver
from crate_graph.train.step import TrainStep
from crate_graph.train.telemetry import Display, StepClock, Stragglers, peak_memory_bytes
from crate_graph.train.white_box import WhiteBox

logger = logging.getLogger(__name__)


@dataclass
class Loop:
    """A run that is set up (`crate_graph.train.run`) and its position: `step` global batches are behind it."""

    recipe: Recipe
    folder: RunFolder
    engine: Engine
    train_step: TrainStep
    loader: PlannedLoader
    eval_loader: PlannedLoader
    ema: Ema | None
    guard: FiniteGuard
    saver: Saver
    requests: Requests
    watchdog: Watchdog
    log: MetricsLog | None  # of the main process
    display: Display
    clock: StepClock
    white_box: WhiteBox
    last_step: int
    step: int = 0
    damaged: int = 0
    metrics: dict[str, float] = field(default_factory=dict)  # of the newest evaluation
    late: LateReader = field(default_factory=LateReader)
    stragglers: Stragglers = field(default_factory=Stragglers)
    stopped: bool = False  # by request, before the last step
    stopped_by: str | None = None  # what asked for it: a signal's name, `stop-now`, `--max-duration`
    _saved_at: int = -1
    _measured_at: int = -1
    _unrecorded: tuple[int, Report] | None = None  # the newest step, where it was none to be logged
    _save: bool = False
    _stop: bool = False
    _roll_back: bool = False

    @property
    def steps_per_epoch(self) -> int:
        return self.train_step.steps_per_epoch

    def run(self) -> None:
        """Train until the last step, or until somebody asks to stop. Collective, like all below."""
        self._saved_at = self.step
        if self.step == 0:
            self.white_box.look(0)
        while self.step < self.last_step and not self.stopped:
            epoch, offset = divmod(self.step, self.steps_per_epoch)
            self.clock.restart()
            for batch in self.loader.epoch(epoch, start=offset):
                self._train(batch, self.clock.data_arrived())
                if self.stopped or self.step >= self.last_step:
                    break
        self._read(self.late.drain())
        if self._saved_at != self.step:
            self._save_now()
        if self.stopped:
            self._tell_of_the_stop()

    def _tell_of_the_stop(self) -> None:
        self.stopped_by = next(filter(None, gather(self.engine.ranks, self.requests.asked_by)), None)
        if self.stopped_by is None:
            return  # a checkpoint could not be written: that is told in its place
        if self._unrecorded is not None:
            self._write_record(*self._unrecorded)
        text = (
            f"stopped as asked at step {self.step} of {self.last_step}, by {self.stopped_by}; the same command goes on"
        )
        logger.info(text)
        self.display.say(text)

    def _train(self, batch: Batch, data_wait: float) -> None:
        self.folder.check()
        save, stop = self.requests.poll()
        stop |= self.saver.writer.failed
        word = self.train_step(self.step, batch, save=save, stop=stop, data_wait=data_wait)
        if self.step == 0:
            self._show_images(batch)
        self._note_damage(batch)
        self._read(self.late.push(self.step, word))
        self.step += 1
        self.clock.step_done()
        self.watchdog.beat()
        self.display.advance(self.step)
        self.white_box.look(self.step)
        self._between_steps()

    def _between_steps(self) -> None:
        """Whatever is due after a step, at the same step on every rank."""
        epoch_ends = self.step % self.steps_per_epoch == 0
        run_ends = self.step >= self.last_step
        evaluate = run_ends or (epoch_ends and self._due(self.recipe.evaluation.every_epochs))
        every_steps = self.recipe.checkpoint.every_steps
        save = (epoch_ends and self._due(self.recipe.checkpoint.every_epochs)) or bool(
            every_steps and self.step % every_steps == 0
        )
        if not (evaluate or save or run_ends or self._save or self._stop or self._roll_back):
            return
        self._read(self.late.drain())
        if self._roll_back:
            self._restore_last_good()
        if evaluate:
            self._evaluate_or_save()
        if (save or run_ends or self._save or self._stop) and self.guard.consecutive == 0:
            self._save_now()
        self.stopped |= self._stop and not run_ends
        self._save = False
        self.clock.restart()

    def _due(self, every_epochs: int | None) -> bool:
        return bool(every_epochs) and (self.step // self.steps_per_epoch) % every_epochs == 0

    def _read(self, reports: list[tuple[int, Report]]) -> None:
        """Take in what all ranks said of past steps."""
        for step, report in reports:
            self._save |= report.save
            self._stop |= report.stop
            self.damaged += report.damaged
            self.stragglers.add(report.busy)
            verdict = self.guard.judge(report.finite)
            self._roll_back |= verdict is Verdict.ROLL_BACK
            if not report.finite:
                logger.warning("step %d skipped: its loss or gradient is not finite", step + 1)
            self._unrecorded = step, report
            if (step + 1) % self.recipe.telemetry.log_every == 0 or step + 1 == self.last_step or not report.finite:
                self._write_record(step, report)
            if verdict is Verdict.GIVE_UP:
                raise self._not_finite(f"after {self.guard.rollbacks} rollbacks")
            self._check_damage_budget()

    def _write_record(self, step: int, report: Report) -> None:
        self._unrecorded = None
        done = step + 1
        rates, seconds = self.clock.report()
        record = {
            "epoch": step // self.steps_per_epoch,
            "samples_seen": done * self.recipe.batch.global_batch,
            "loss": report.loss,
            "lr": self.train_step.lr(step),
            "grad_norm": report.grad_norm,
            "skipped": not report.finite,
            "skipped_total": self.guard.skipped,
            "damaged_total": self.damaged,
            **rates,
            **self.stragglers.report(),
            "peak_memory_bytes": peak_memory_bytes(self.engine.device),
        }
        if self.log is not None:
            self.log.write(done, record)
            self.log.histogram("step_seconds", seconds, done)
        self.display.report(done, record)

    def _evaluate_or_save(self) -> None:
        """Data that cannot be evaluated ends the run, and should not cost what was trained."""
        try:
            self._evaluate()
        except UserError:
            if self.engine.ranks.world == 1 and self.guard.consecutive == 0:  # others would not take part in a save
                self._save_now()
                self.saver.writer.wait()
            raise

    def _evaluate(self) -> None:
        average = self.ema if self.recipe.evaluation.use_ema else None
        with average.applied() if average is not None else nullcontext():
            self._measured_at = self.step
            self.metrics, _ = evaluate_split(
                self._measure, self.engine.objective.task, self.eval_loader, self.engine.ranks
            )
            gallery = self.engine.objective.task.take_gallery()
        if self.log is not None:
            if gallery is not None and self.recipe.telemetry.images:
                self.log.images("evaluation", gallery, self.step)
            self.log.write(
                self.step,
                {
                    "epoch": (self.step - 1) // self.steps_per_epoch,
                    **{f"eval_{name}": value for name, value in self.metrics.items()},
                },
            )
        text = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        self.display.say(f"evaluation after step {self.step}: {text}")

    def _measure(self, batch: MicroBatch) -> Tensor:
        self.watchdog.beat()
        return self.engine.measure(batch)

    def _save_now(self) -> None:
        self._saved_at = self.step
        with self.watchdog.patient():
            self.saver.save(self.step, self.damaged, self.metrics if self._measured_at == self.step else {})

    def _restore_last_good(self) -> None:
        """Weights of the last good checkpoint; the data between it and here is stepped over."""
        self._roll_back = False
        self.saver.writer.wait()
        torch.distributed.barrier()  # the main process has written what all now read
        entry = self.saver.store.newest()
        if entry is None:
            raise self._not_finite("and there is no checkpoint to go back to")
        rollbacks, skipped = self.guard.rollbacks, self.guard.skipped
        with self.watchdog.patient():
            self.saver.restore(entry.path)
        self.guard.rollbacks, self.guard.skipped, self.guard.consecutive = rollbacks, skipped, 0
        logger.warning("rolled back to %s; going on with the data of step %d", entry.path.name, self.step + 1)
        self.display.say(
            f"rolled back to the weights of {entry.path.name}; steps {entry.step + 1} to {self.step} are over"
        )
        if self.log is not None:
            self.log.write(self.step, {"event": "rollback", "to_step": entry.step})

    def _not_finite(self, circumstance: str) -> RunFailed:
        return RunFailed(
            f"step {self.step}: the loss or gradient of {self.guard.consecutive} steps in a row was not finite, "
            f"{circumstance}; lower optimizer.lr, set optimizer.clip_norm, or use precision=fp32"
        )

    def _note_damage(self, batch: Batch) -> None:
        for sample in batch.damaged:
            logger.warning("damaged sample replaced: %s", sample)

    def _check_damage_budget(self) -> None:
        data = self.recipe.data
        allowed = int(data.damaged_budget * self.loader.split.samples * max(1, -(-self.step // self.steps_per_epoch)))
        if self.damaged > allowed:
            raise UserError(
                f"{self.saver.store.folder.parent / 'logs'}: {self.damaged} damaged samples by step {self.step}, "
                f"over the budget of {allowed}; mend the shards that the logs name (crate-graph shards verify), or "
                f"raise data.damaged_budget={data.damaged_budget}"
            )

    def _show_images(self, batch: Batch) -> None:
        if self.log is None or not self.recipe.telemetry.images:
            return
        self.log.images("train_samples", self.engine.objective.task.pictures(batch.images[:16]), 0)
