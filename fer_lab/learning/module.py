"""The one LightningModule: a net, a task, and how the net learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from fer_lab.data.faces import Faces
from fer_lab.learning.rates import Rates
from fer_lab.learning.sharing import share_buffers, whole_batch
from fer_lab.learning.tasks import Task
from fer_lab.models.preprocess import Preprocess
from fer_lab.models.weights import frozen_parts, hold_frozen, unfreeze

Tensors = tuple[Tensor, ...] | list[Tensor]
LossSum = tuple[Tensor, Tensor | None, int]
Outputs = tuple[Tensor, Tensor, Tensor | None, Tensor]
Scores = Callable[[Tensor, Tensor, Tensor | None], dict[str, float]]


class Diverged(RuntimeError):
    """The loss stopped being a number; the text names the step and the settings that led there."""


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential average for AveragedModel that forgets the first steps faster: decay at most n / (n + 10)."""

    @torch.no_grad()
    def update(averages: Tensors, values: Tensors, count: Tensor | int) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - min(decay, float(count) / (float(count) + 10)))
        else:
            torch._foreach_copy_(averages, values)  # batch norm's count of batches

    return update


class LearningError(ValueError):
    """A setting of the optimizer or the monitor that cannot be; the text names the choices."""


class FerModule(pl.LightningModule):
    """Learns `task` with `net`, which has a `backbone` and a `head`.

    `optimizer` takes parameter groups, `scheduler` an optimizer with epochs= and steps_per_epoch=, `scores`
    the outputs (N, O), labels (N,) and affect (N, 2) of a whole validation part.
    With `ema` (decay per step, 0..1) an exponential moving average of the weights is what is validated,
    kept and exported. `rates` say which part learns how fast and from when on.
    """

    def __init__(
        self,
        net: nn.Module,
        task: Task,
        preprocess: Preprocess,
        optimizer: Callable[..., Optimizer],
        scores: Scores,
        scheduler: Callable[..., dict[str, Any]] | None = None,
        ema: float | None = None,
        seed: int = 0,
        rates: Rates | None = None,
    ) -> None:
        super().__init__()
        self.net, self.task, self.preprocess = net, task, preprocess
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.scores, self.seed, self.rates = scores, seed, rates or Rates()
        self.frozen = frozen_parts(net)  # when training begins
        self.average = AveragedModel(net, multi_avg_fn=moving_average(ema), use_buffers=True) if ema else None
        if self.average is not None:
            self.average.requires_grad_(False)  # DDP would wait for its gradients
        self.strict_loading = False  # checkpoints leave frozen weights out
        self.train_sums: list[LossSum] = []
        self.outputs: list[Outputs] = []  # of a validation epoch: outputs, labels, affect and positions

    @property
    def judged(self) -> nn.Module:
        """The net that is validated, kept and exported."""
        return self.average.module if self.average is not None else self.net

    @property
    def logged(self) -> tuple[str, ...]:
        """What an epoch logs, and so what can choose the best one."""
        outputs = torch.eye(2, self.task.outputs(2))
        names = [f"val/{name}" for name in self.scores(outputs, torch.arange(2), torch.eye(2))]
        trained = () if self.task.logits(outputs) is None else ("train/accuracy",)
        return ("train/loss", *trained, "val/loss", *names)

    @property
    def never_learning(self) -> frozenset[str]:
        """Names of the net's parameters that stay as they came: no checkpoint holds them."""
        if self.rates.unfreeze is not None:
            return frozenset()
        return frozenset(name for name, value in self.net.named_parameters() if not value.requires_grad)

    def forward(self, faces: Faces, net: nn.Module | None = None) -> Tensor:
        """The net's outputs (B, O), or (V, B, O) where the images are V test-time views."""
        net = net if net is not None else self.net
        if faces.features is not None:
            return net.head(faces.features)  # type: ignore[operator]
        if faces.images.ndim == 4:
            return net(self.preprocess(faces.images))
        return torch.stack([net(self.preprocess(view)) for view in faces.images])

    def on_fit_start(self) -> None:
        self.train()  # Lightning leaves modes as they are, and a frozen batch norm must not learn

    def on_train_epoch_start(self) -> None:
        if self.rates.unfreeze is not None:  # by the epoch alone: a resumed run goes on alike
            unfreeze(self.net, self.frozen, self.current_epoch // self.rates.unfreeze)
            self.train()

    def on_train_batch_start(self, batch: Faces, batch_idx: int) -> None:
        if (
            batch_idx == 0
        ):  # dropout repeats itself when an interrupted epoch is trained again, and differs by process
            torch.manual_seed(1_000_003 * self.seed + self.current_epoch + 500_009 * self.global_rank)

    def training_step(self, faces: Faces, batch_idx: int) -> Tensor:
        outputs, faces = whole_batch(self(faces), faces)
        loss = self.task.loss(outputs, faces)
        if self.device.type == "cpu" or batch_idx % 50 == 0:  # reading a loss stalls a GPU
            self.refuse_divergence(loss.detach())
        count = len(faces.labels)
        self.train_sums.append(
            (loss.detach() * count, self.task.correct(outputs.detach(), faces.labels), count)
        )
        return loss

    def refuse_divergence(self, loss: Tensor | float, part: str = "training") -> None:
        if not math.isfinite(value := float(loss)):
            rates = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
            raise Diverged(
                f"the {part} loss is {value} at step {self.global_step} (epoch {self.current_epoch}) with "
                f"{type(self.trainer.optimizers[0]).__name__}, learning rate {rates[0]:.3g}, precision "
                f"{self.trainer.precision}; try a lower optimizer.lr, trainer.gradient_clip_val=1 or 32-bit precision"
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.net)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By norm (or value); Lightning's own refuses fused optimizers under mixed precision."""
        if gradient_clip_val:
            by_value = gradient_clip_algorithm == "value"
            clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
            clip(self.net.parameters(), gradient_clip_val)

    def on_train_epoch_end(self) -> None:
        losses, correct, counts = zip(*self.train_sums, strict=True)
        self.train_sums.clear()
        mean_loss = float(torch.stack(losses).sum()) / sum(counts)
        self.refuse_divergence(mean_loss)
        figures = {"train/loss": mean_loss, "lr": self.trainer.optimizers[0].param_groups[0]["lr"]}
        if correct[0] is not None:  # the task tells expressions
            figures["train/accuracy"] = float(torch.stack(correct).sum()) / sum(counts)
        self.log_dict(figures)

    def on_validation_start(self) -> None:
        if self.trainer.world_size > 1:
            share_buffers(self)

    def validation_step(self, faces: Faces, batch_idx: int) -> None:
        outputs = self(faces, self.judged)
        outputs, faces = whole_batch(outputs.mean(0) if outputs.ndim == 3 else outputs, faces)
        self.outputs.append((outputs, faces.labels, faces.affect, faces.positions))

    def on_validation_epoch_end(self) -> None:
        found, targets, affects, places = zip(*self.outputs, strict=True)
        self.outputs.clear()
        outputs, labels, positions = torch.cat(found).float(), torch.cat(targets), torch.cat(places)
        affect = None if affects[0] is None else torch.cat(affects)
        faces = Faces(positions, labels, positions, affect=affect)  # the loss looks at no images
        loss = self.task.loss(outputs, faces)
        self.refuse_divergence(loss, "validation")
        scores = self.scores(outputs.cpu(), labels.cpu(), None if affect is None else affect.cpu())
        figures = {"val/loss": float(loss), **{f"val/{name}": value for name, value in scores.items()}}
        self.log_dict(self.trainer.strategy.broadcast(figures))  # machines may differ in the last bit

    @torch.inference_mode()
    def probabilities(self, faces: Faces) -> Tensor:
        """(B, K) of the judged net, averaged over the test-time views."""
        found = self.task.probabilities(self(faces, self.judged))
        return found.mean(0) if found.ndim == 3 else found

    @torch.inference_mode()
    def predictions(self, faces: Faces) -> Tensor:
        """The probabilities, valence and arousal that the task has, (B, K | 2 | K + 2), averaged likewise."""
        found = self.task.predictions(self(faces, self.judged))
        return found.mean(0) if found.ndim == 3 else found

    def train(self, mode: bool = True) -> FerModule:
        super().train(mode)
        hold_frozen(self.net)
        if self.average is not None:
            self.average.eval()
        return self

    def configure_optimizers(self) -> Any:
        try:
            epochs = self.trainer.max_epochs or 1
            self.rates.refuse_without_effect(self.net, self.frozen, epochs)
            optimizer = self.rates.optimizer(self.make_optimizer, self.net, self.trainer.world_size)
            if self.make_scheduler is None:
                return optimizer
            steps = -(-int(self.trainer.estimated_stepping_batches) // epochs)
            schedule = self.make_scheduler(optimizer, epochs=epochs, steps_per_epoch=steps)
        except ValueError as error:
            raise LearningError(f"optimizer or scheduler: {error}") from error
        return {"optimizer": optimizer, "lr_scheduler": schedule}
