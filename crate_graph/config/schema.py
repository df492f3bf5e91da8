"""The recipe: every setting of a run, with its type, its default and its allowed values.

A class below is one section of the YAML file. Checks that need only the recipe live here; checks that need the number
of processes live in `Batch.resolve`, because the same recipe runs on one process or on many.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from crate_graph.errors import UserError

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Aspect = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Task(Section):
    """What is learned: the loss and the metrics."""

    kind: Literal["classification", "restoration", "masked_autoencoding"] = "classification"
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # only for classification
    loss: Literal["charbonnier", "l1", "huber", "mse"] = "charbonnier"  # only for restoration
    mask_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.75  # share of hidden patches; only for masked_autoencoding
    normalize_patches: bool = False  # learn each patch less its mean, over its deviation; likewise


class Model(Section):
    """A name in timm's registry (CRATE's names are there too) and the arguments of its constructor."""

    name: str
    kwargs: dict[str, Any] = Field(default_factory=dict)
    init_from: str | None = None  # weights to start from: a checkpoint, a run, an exported folder, a weights file
    new_head: bool = False  # leave the head at its initial values, though weights for as many classes are there
    freeze: Literal["none", "backbone"] = "none"  # backbone: only the head learns (linear probing)

    @model_validator(mode="after")
    def _some_arguments_are_not_the_recipes(self):
        taken = {"num_classes": "it follows from the data set", "pretrained": "use model.init_from"}
        taken |= {"name": "use model.name", "model_name": "use model.name"}
        for key in taken.keys() & self.kwargs.keys():
            raise ValueError(f"kwargs.{key} cannot be set: {taken[key]}")
        return self

    def in_words(self) -> str:
        """The name, and the arguments that may make it another size than the name says."""
        arguments = ", ".join(f"{key}={value}" for key, value in self.kwargs.items())
        return f"{self.name} with {arguments}" if arguments else self.name


class TrainTransform(Section):
    """Random view of a training image. `size` is the side of the square that the model sees."""

    size: Positive = 224
    crop: Literal["random_resized", "pad_and_crop", "center", "none"] = "random_resized"
    scale: tuple[Share, Share] = (0.08, 1.0)  # area of the random crop over the area of the image
    ratio: tuple[Aspect, Aspect] = (3 / 4, 4 / 3)  # width over height
    padding: Natural = 4  # only for pad_and_crop
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    horizontal_flip: Fraction = 0.5
    rand_augment: str | None = None  # timm's notation, for instance "rand-m9-n2-mstd0.5"
    random_erasing: Fraction = 0.0
    mixup: Annotated[float, Field(ge=0.0)] = 0.0  # alpha of the Beta distribution; 0 is off
    cutmix: Annotated[float, Field(ge=0.0)] = 0.0
    mixup_switch: Fraction = 0.5  # chance of cutmix where both are on


class EvalTransform(Section):
    """Fixed view of an evaluation image: shorter side to `resize`, then the central square of `size`."""

    size: Positive = 224
    resize: Positive | None = 256  # null: resize straight to (size, size)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


class Degradation(Section):
    """What is lost of a picture: which values are known, and the noise on them.

    bayer: one colour of each pixel is known. decimate: the pixels [::2, ::2]. random: some pixels. none: all of them.
    """

    kind: Literal["bayer", "decimate", "random", "none"]
    phase: Literal["RGGB", "GRBG", "GBRG", "BGGR", "any"] = "RGGB"  # bayer, from the top left; any: one for each sample
    keep: Share = 0.25  # random: chance of a pixel to be known, all its channels together
    sigma: float | tuple[float, float] = 0.0  # Gaussian noise, of 255; a pair: uniform in between for each sample

    @field_validator("sigma", mode="plain")
    @classmethod
    def _levels(cls, value: Any) -> float | tuple[float, float]:
        levels = list(value) if isinstance(value, list | tuple) else [value]
        numbers = [x for x in levels if isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x <= 255]
        pair = isinstance(value, list | tuple)
        if len(numbers) != 1 + pair or len(levels) != len(numbers) or levels != sorted(levels):
            raise ValueError(
                f"data.degradation.sigma={value!r} is not allowed: it should be a number from 0 to 255, or a pair "
                f"[lowest, highest] of these"
            )
        return (float(levels[0]), float(levels[1])) if pair else float(value)


class Cache(Section):
    """Copies of remote shards on this host, shared by all its processes."""

    folder: str = "~/.cache/crate-graph"  # best on a disk of the host itself
    gigabytes: Annotated[float, Field(gt=0.0)] = 100.0  # of 10^9 bytes; the least recently used go first


class Remote(Section):
    """How shards are fetched from an address (http(s)://, s3://, hf://, pipe:COMMAND).

    By default all tries together take about two minutes: less than `watchdog.seconds`, so that a shard which cannot be
    fetched ends the run with its own name.
    """

    timeout: Annotated[float, Field(gt=0.0, le=3600.0)] = 20.0  # seconds to wait for a connection, and for each read
    retries: Annotated[int, Field(ge=0, le=100)] = 4  # further tries for one file
    backoff: Annotated[float, Field(ge=0.0, le=60.0)] = 1.0  # seconds before the first of them; doubles, with jitter
    read_ahead: Natural = 1  # shards that each slot has ready besides those in use; 0 fetches when a shard is needed
    connections: Positive = 2  # files that each loader process fetches at once
    s3_endpoint: str | None = None  # URL of an S3-compatible store; null: as boto3 is set up


class Data(Section):
    """Where the shards are and how the planned stream deals them."""

    dataset: str  # a shipped name, a folder or an address that holds dataset.yaml, or the file itself
    root: str | None = None  # folder or address of the shards; default: beside dataset.yaml
    train_split: str = "train"
    eval_split: str = "test"
    slots: Positive = 64  # virtual readers; fixes the sequence of global batches
    shuffle_block: Positive = 1024  # samples that are shuffled together inside a slot
    workers: Natural = 2  # loader processes per rank; 0 reads in the training process
    prefetch: Positive = 2  # batches that each worker keeps ready
    damaged_budget: Fraction = 0.001  # share of the training samples that may be damaged before the run stops
    train_transform: TrainTransform = TrainTransform()
    eval_transform: EvalTransform = EvalTransform()
    cache: Cache = Cache()  # these two only for shards at an address
    remote: Remote = Remote()
    degradation: Degradation | None = None  # only for restoration, like the next two
    patch: Annotated[int, Field(ge=5, le=4096)] = 64  # side of the square that is cut from a training picture
    color: Literal["rgb", "y"] = "rgb"  # y: luma, BT.601 in studio range

    @field_validator("dataset")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError(f"data.dataset={value!r} is empty: name a shipped data set, a folder or an address")
        return value


class Batch(Section):
    """micro_batch x accumulation x world size = global_batch."""

    global_batch: Annotated[int, Field(gt=0, le=2**20)] = 256
    micro_batch: Positive | None = None  # samples of one forward pass on one process; null: no accumulation

    def resolve(self, world: int) -> tuple[int, int]:
        """(micro batch, accumulation) on `world` processes.

        Raises:
            UserError: the product cannot be met exactly.
        """
        if self.global_batch % world:
            raise UserError(
                f"batch.global_batch={self.global_batch} does not divide among {world} processes; "
                f"choose a multiple of {world}, or another number of processes"
            )
        share = self.global_batch // world
        micro = self.micro_batch or share
        if share % micro:
            raise UserError(
                f"batch.global_batch={self.global_batch} gives each of {world} processes {share} samples, which is no "
                f"multiple of batch.micro_batch={micro}; choose a micro_batch that divides {share}"
            )
        return micro, share // micro


class Optimizer(Section):
    name: Literal["adamw", "lion"] = "adamw"
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    decay: Literal["matrices", "all"] = "matrices"  # all: biases, norms and embeddings decay too (published CRATE)
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] | None = None
    eps: Annotated[float, Field(gt=0.0)] = 1e-8  # AdamW only
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None


class Schedule(Section):
    """Learning rate over the run, as a share of `optimizer.lr`.

    cosine: linear warm-up, then half a cosine from 1 down to `min_factor`.
    cosine_capped: min((e + 1) / warmup, (1 + cos(pi e / epochs)) / 2), the form of the published CRATE code.
    """

    epochs: Positive = 90
    max_steps: Positive | None = None  # stop here even if epochs remain; the schedule's shape does not change
    shape: Literal["cosine", "cosine_capped", "constant"] = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 5.0
    min_factor: Fraction = 0.0
    per: Literal["step", "epoch"] = "step"  # epoch: the rate is held for a whole epoch


class Ema(Section):
    decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None  # null: no average is kept


class ActivationCheckpointing(Section):
    """What is recomputed in the backward pass; see README, "Memory"."""

    mode: Literal["none", "layer", "block", "every_k"] = "none"
    k: Positive = 2  # layers per recomputed segment, only for every_k


class EngineConfig(Section):
    name: Literal["accelerate", "deepspeed"] = "accelerate"
    zero_stage: Literal[0, 1, 2, 3] = 0

    @model_validator(mode="after")
    def _zero_needs_deepspeed(self):
        if self.zero_stage and self.name != "deepspeed":
            raise ValueError(
                f"zero_stage={self.zero_stage} needs the deepspeed engine; "
                f"set engine.name=deepspeed or engine.zero_stage=0"
            )
        return self


class Guard(Section):
    """What happens when a loss or a gradient is not finite."""

    max_consecutive_skips: Positive = 5  # then roll back to the last good checkpoint
    max_rollbacks: Natural = 2  # then stop


Seconds = Annotated[float, Field(gt=0.0, le=604_800.0)]  # a week at most


class WatchdogConfig(Section):
    """When a run that makes no progress is ended, with its stacks in logs/, so that its launcher starts it again."""

    seconds: Seconds | None = 300.0  # without a step, or a batch of an evaluation; null: never
    first_seconds: Seconds = 1800.0  # for the first steps and for saves

    @model_validator(mode="after")
    def _the_start_takes_longer(self):
        if self.seconds is not None and self.first_seconds < self.seconds:
            raise ValueError(
                f"watchdog.first_seconds={self.first_seconds:g} is below watchdog.seconds={self.seconds:g}; the first "
                f"steps take longer than others, so set it to at least that"
            )
        return self


class Checkpoint(Section):
    every_steps: Positive | None = None
    every_epochs: Positive | None = 1
    keep_last: Positive = 2
    keep_every: Positive | None = None  # also keep each checkpoint whose step is a multiple of this
    keep_best: Natural = 1  # also keep the best by `evaluation.metric`


class Evaluation(Section):
    every_epochs: Positive = 1
    batch_size: Annotated[int, Field(gt=0, le=2**16)] = 256  # samples a process evaluates at once
    metric: Literal["top1", "top5", "loss", "psnr", "ssim"] = "top1"  # without classes: psnr
    use_ema: bool = True  # where an average is kept


class WhiteBox(Section):
    """What the layers do, measured while they train; see `crate_graph.analysis.layers`."""

    every: Positive | None = None  # steps; null: never
    samples: Positive = 8  # of the training split, chosen by the seed


class Telemetry(Section):
    log_every: Positive = 10
    tensorboard: bool = True
    images: bool = True
    peak_tflops: Annotated[float, Field(gt=0.0)] | None = None  # of one device; null: known GPUs only
    whitebox: WhiteBox = WhiteBox()


class Recipe(Section):
    """Everything a run is made of. The resolved form is saved as `recipe.yaml` in the run folder."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # also the run's folder under runs/
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    task: Task = Task()
    model: Model
    data: Data
    batch: Batch = Batch()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    ema: Ema = Ema()
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing()
    engine: EngineConfig = EngineConfig()
    guard: Guard = Guard()
    watchdog: WatchdogConfig = WatchdogConfig()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    telemetry: Telemetry = Telemetry()

    @model_validator(mode="after")
    def _settings_belong_to_the_task(self):
        if self.task.kind != "classification" and "metric" not in self.evaluation.model_fields_set:
            self.__dict__["evaluation"] = self.evaluation.model_copy(update={"metric": "psnr"})
        check = {
            "classification": _check_classification,
            "restoration": _check_restoration,
            "masked_autoencoding": _check_masked_autoencoding,
        }[self.task.kind]
        check(self.task, self.data, self.evaluation)
        return self

    @model_validator(mode="after")
    def _only_classifiers_have_heads(self):
        if self.task.kind != "classification":
            for key in {"new_head", "freeze"} & self.model.model_fields_set:
                if (value := getattr(self.model, key)) != Model.model_fields[key].default:
                    raise ValueError(f"model.{key}={value} is for classification; leave it out")
        return self

    @model_validator(mode="after")
    def _slots_divide_the_batch(self):
        if self.batch.global_batch % self.data.slots:
            raise ValueError(
                f"batch.global_batch={self.batch.global_batch} is not a multiple of data.slots={self.data.slots}; "
                f"choose slots that divide the global batch"
            )
        per_slot = self.batch.global_batch // self.data.slots
        view = self.data.train_transform
        if (view.mixup or view.cutmix) and per_slot % 2:
            raise ValueError(
                f"mixup and cutmix pair samples inside a slot, and a slot gives {per_slot} samples per step; "
                f"choose data.slots so that batch.global_batch / data.slots is even"
            )
        return self


def _check_restoration(task: Task, data: Data, evaluation: Evaluation) -> None:
    """Raises ValueError for what restoration lacks, or does not use."""
    degradation = data.degradation
    if degradation is None:
        raise ValueError(
            "task.kind=restoration needs data.degradation; for instance data.degradation={kind: bayer, phase: RGGB}"
        )
    if degradation.kind == "none" and degradation.sigma in (0, (0, 0)):
        raise ValueError("data.degradation of kind none without sigma leaves nothing to restore; set sigma or a kind")
    if degradation.kind == "bayer" and data.color == "y":
        raise ValueError("data.color=y has one channel, and a Bayer mosaic has three; set data.color=rgb")
    for name, default in (("train_transform", TrainTransform()), ("eval_transform", EvalTransform())):
        if getattr(data, name) != default:
            raise ValueError(
                f"data.{name} is for classification; restoration cuts squares of data.patch pixels to train, and "
                f"evaluates whole pictures; leave it out"
            )
    if task.label_smoothing:
        raise ValueError("task.label_smoothing is for classification; leave it out")
    if evaluation.metric in ("top1", "top5"):
        raise ValueError(f"evaluation.metric={evaluation.metric} is for classification; choose psnr, ssim or loss")
    _check_no_masks(task)


def _check_classification(task: Task, data: Data, evaluation: Evaluation) -> None:
    """Raises ValueError for what only other tasks use."""
    _check_no_restoration(task, data)
    _check_no_masks(task)
    if evaluation.metric in ("psnr", "ssim"):
        raise ValueError(f"evaluation.metric={evaluation.metric} is for restoration; choose top1, top5 or loss")


def _check_masked_autoencoding(task: Task, data: Data, evaluation: Evaluation) -> None:
    """Raises ValueError for what masked autoencoding does not use."""
    _check_no_restoration(task, data)
    view = data.train_transform
    for key, value in (
        ("task.label_smoothing", task.label_smoothing),
        ("data.train_transform.mixup", view.mixup),
        ("data.train_transform.cutmix", view.cutmix),
    ):
        if value:
            raise ValueError(f"{key} is for classification; masked autoencoding has no labels; leave it out")
    if evaluation.metric not in ("psnr", "loss"):
        raise ValueError(f"evaluation.metric={evaluation.metric} is for other tasks; choose psnr or loss")


def _check_no_masks(task: Task) -> None:
    if task.mask_ratio != 0.75 or task.normalize_patches:
        raise ValueError(
            "task.mask_ratio and task.normalize_patches are for masked autoencoding; set "
            "task.kind=masked_autoencoding, or leave them out"
        )


def _check_no_restoration(task: Task, data: Data) -> None:
    for key, value, default in (
        ("data.degradation", data.degradation, None),
        ("data.patch", data.patch, 64),
        ("data.color", data.color, "rgb"),
        ("task.loss", task.loss, "charbonnier"),
    ):
        if value != default:
            raise ValueError(f"{key} is for restoration; set task.kind=restoration, or leave it out")
