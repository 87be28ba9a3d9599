"""The settings of the optimizer, of views and of how a run is computed, with the options that are off by default."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from longtail.settings import Settings, Time, leaves_none, resolve_time


class OptimSettings(Settings):
    """``optim.*``: stochastic gradient descent and its schedule. Times are fractions of the run or epochs."""

    epochs: int = Field(200, ge=1)
    """Passes over the training images."""
    batch: int = Field(256, ge=2)
    """Images a step (each in as many views as the method has)."""
    lr: float = Field(0.15, gt=0)
    """The top learning rate."""
    schedule: Literal["step", "cosine", "onecycle"] = "step"
    """step: times decay at each milestone; cosine: falls after the warm-up; onecycle: rises over 30 % and falls."""
    warmup_epochs: Time = 0.025
    """Linear warm-up, a fraction of the run (rounded up) or epochs; not for onecycle."""
    milestones: tuple[Time, ...] = (0.8, 0.9)
    """When the rate is multiplied by decay: fractions of the run or epochs; for step only."""
    decay: float = Field(0.1, gt=0, le=1)
    """The factor at each milestone."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of stochastic gradient descent."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """The rate of each layer of the backbone as a multiple of that of the next one; null is the same for all."""
    weight_decay: float = Field(5e-4, ge=0)
    """On every parameter, biases and batch-norm included."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches that a batch is computed in, for less memory; batch-norm and contrasts see one at a time."""
    clip: float | None = Field(None, gt=0)
    """The largest norm of all gradients together; null does not clip."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an average of the weights, which is then evaluated, kept as best and predicted with; null has none."""
    swa_start: Time | None = None
    """Stochastic weight averaging: from this fraction of the run or epoch on the mean of the weights is evaluated, kept
    as best and predicted with; null has none. The schedule ends where it begins. In a run that is too short for a
    fraction to leave an epoch there is none either."""
    swa_lr: float | None = Field(None, gt=0)
    """The constant learning rate from there on, to which the schedule falls; null is a quarter of lr."""
    sam: float | None = Field(None, gt=0)
    """Radius rho of sharpness-aware minimization, at twice the image passes; null is off."""
    sam_start: Time = 0
    """It begins in this epoch: a fraction of the run or an epoch."""
    patience: int | None = Field(None, ge=1)
    """End after so many evaluations without a better balanced accuracy on val; null trains every epoch."""

    @field_validator("nesterov")
    @classmethod
    def _of_some_momentum(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("momentum") == 0:
            raise ValueError("needs an optim.momentum above 0")
        return value

    @field_validator("accumulate")
    @classmethod
    def _two_images_or_more(cls, value: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch")
        if batch is not None and value > 1 and batch // value < 2:
            raise ValueError(f"leaves micro-batches of less than 2 of the {batch} images of optim.batch")
        return value

    @field_validator("swa_start")
    @classmethod
    def _the_only_average(cls, value: int | float | None, info: ValidationInfo) -> int | float | None:
        epochs = info.data.get("epochs")
        if value is not None and info.data.get("ema") is not None:
            raise ValueError("and optim.ema are two averages of the weights; set one of them to null")
        if epochs is not None and value is not None and leaves_none(value, epochs):
            raise ValueError(f"leaves none of the {epochs} epochs of optim.epochs to average")
        return value

    @property
    def schedule_epochs(self) -> int:
        """Where the schedule ends: with the last epoch, or where ``swa_start`` begins."""
        return self.epochs if self.swa_start is None else resolve_time(self.swa_start, self.epochs)

    @property
    def averages(self) -> bool:
        """Whether ``swa_start`` leaves epochs to average."""
        return self.schedule_epochs < self.epochs

    @property
    def lowest_lr(self) -> float:
        """Where cosine and onecycle end: at 0, or at the rate of averaging."""
        if not self.averages:
            return 0.0
        return self.lr / 4 if self.swa_lr is None else self.swa_lr

    def sharpens(self, epoch: int, epochs: int) -> bool:
        """Whether steps of this epoch take SAM's second pass (start 0.8 of 200: epochs 160..199)."""
        return self.sam is not None and epoch >= resolve_time(self.sam_start, epochs)

    def resolved(self) -> dict[str, Any]:
        """The times that this schedule uses, in epochs: ``{"warmup_epochs": 1, "milestones": [16, 18]}`` for step."""
        times: dict[str, Any] = {}
        if self.schedule != "onecycle":
            times["warmup_epochs"] = resolve_time(self.warmup_epochs, self.epochs, round_up=True)
        if self.schedule == "step":
            times["milestones"] = [resolve_time(time, self.epochs) for time in self.milestones]
        if self.sam is not None and self.sam_start != 0:
            times["sam_start"] = resolve_time(self.sam_start, self.epochs)
        if self.averages:
            times["swa_start"] = self.schedule_epochs
        return times


class ViewSettings(Settings):
    """``views.*``: the augmentation of each role, by name, and the size of contrastive views."""

    classification: str = "crop-flip"
    """Augmentation of the view that is classified."""
    contrastive: str = "contrastive"
    """Augmentation of the views of a contrastive loss."""
    contrastive_size: int | None = Field(None, ge=8)
    """Side of those views in pixels; null is that of the images. Smaller ones cost less, with the square."""
    progressive_size: int | None = Field(None, ge=4)
    """Side in pixels that the network sees all images at in the first part of a run; null is theirs throughout."""
    progressive_stop: Time = 0.5
    """From this epoch on it sees them in full: a fraction of the run or an epoch."""
    refined: str | None = None
    """Augmentation of the view that is classified in the last part of a run; null is the same as before."""
    refined_start: Time = 0.9
    """From this epoch on: a fraction of the run or an epoch. A fraction may leave a short run no such epoch."""

    @property
    def names(self) -> dict[str, str]:
        """The augmentation of each role, and of images as they are."""
        names = {"classification": self.classification, "contrastive": self.contrastive, "plain": "plain"}
        return names if self.refined is None else names | {"refined": self.refined}

    def refined_from(self, epochs: int) -> int | None:
        """The epoch from which on ``refined`` stands in for ``classification`` (start 0.9 of 200: 180), if it does."""
        return None if self.refined is None else resolve_time(self.refined_start, epochs)

    def resolved(self, epochs: int) -> dict[str, int]:
        """The times that these views use, in epochs: ``{"refined_start": 180}``."""
        times = {}
        if self.progressive_size is not None:
            times["progressive_stop"] = resolve_time(self.progressive_stop, epochs)
        refined = self.refined_from(epochs)
        if refined is not None and refined < epochs:
            times["refined_start"] = refined
        return times

    def side_at(self, epoch: int, epochs: int) -> int | None:
        """The side that images are brought to in this epoch (stop 0.5 of 40: epochs 0..19); None is their own."""
        return self.progressive_size if epoch < resolve_time(self.progressive_stop, epochs) else None


TrackerName = Literal["tensorboard", "wandb", "mlflow"]


class RunSettings(Settings):
    """``run.*``: how it is computed.

    Weights depend on it by the order of sums alone: ``threads``, ``compile`` and ``device`` move the last bits. The
    exception is ``precision``, which counts in the key of a configuration. ``evaluate_every`` decides which epochs the
    best one is chosen from, and with ``optim.patience`` when a run ends: then it counts too.
    """

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; null takes PyTorch's choice. Another number sums in another order."""
    workers: int = Field(0, ge=0, le=64)
    """Threads that make batches ahead, or processes where files are streamed; the result does not depend on it."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the network: auto does where a run is long enough."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: the backbone's training passes under autocast; heads, losses, weights, evaluation stay float32."""
    checkpointing: bool = False
    """Compute the activations of the backbone's blocks twice instead of keeping them: less memory, same gradients."""
    checkpoint_minutes: float = Field(5.0, gt=0)
    """Save at least this often, besides every epoch's end."""
    evaluate_every: int = Field(1, ge=1)
    """Evaluate after every so many epochs, and after the last."""
    trackers: tuple[TrackerName, ...] = ()
    """Programs that are shown the epochs beside the run's own files: tensorboard, wandb, mlflow."""
    stop_after_minutes: float | None = Field(None, gt=0)
    """Save and end with exit code 75 once a start has taken this long, to go on with --resume; null has no limit."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """``run.trackers=tensorboard`` and ``tensorboard,wandb`` are lists too."""
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value
