"""The configuration of one run: a flat, typed, frozen record.

A field's name is its flag (`--queue-size`), its YAML key, its grid axis and its MLflow parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticKnownError

from densevit.config.loss_kinds import LOSS_KINDS, cl_modes
from densevit.config.probes import ProbeName

TEMPERATURE_RANGE = (0.01, 1.0)  # of a learned temperature
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
NAME_LENGTH = 100


def _whole(value: Any) -> Any:
    """Convert `1.0` to 1; other values go to the type check unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _cl_mode(value: Any) -> Any:
    """Check a `cl_mode` as pydantic checks a Literal."""
    valid = cl_modes()
    if value not in valid:
        raise PydanticKnownError("literal_error", {"expected": ", ".join(map(repr, valid))})
    return value


def _learning_rate(value: Any, info: ValidationInfo) -> Any:
    """Convert `auto` to the rate that suits the fields validated before.

    1e-5 for weights that are trained already; from scratch that of DeiT (Touvron et al., ICML
    2021), 5e-4 for a batch of 512 and proportional to it.
    """
    if value != "auto":
        return value
    known = info.data
    if known.get("pretrained") or known.get("init_checkpoint"):
        return 1e-5
    return 5e-4 * known.get("batch_size", 512) / 512  # without it, it is the batch that is wrong


def canonical(value: Any) -> Any:
    """Convert equal values to equal data: 1.0 becomes 1 and -0.0 becomes 0, in nested data too."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    return value


def _several(value: Any) -> Any:
    """Convert a single value to a list of it."""
    return value if isinstance(value, list | tuple) else [value]


Int = Annotated[int, BeforeValidator(_whole)]
_Byte = Annotated[Int, Field(ge=0, le=255)]
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=NAME_LENGTH)]


_EXECUTION_MARK: dict[str, Any] = {"execution": True}


def _execution(default: Any, **limits: Any) -> Any:
    """Return an execution field: how or where a run executes, not part of its identity."""
    return Field(default, json_schema_extra=_EXECUTION_MARK, **limits)


class BenchmarkFolder(BaseModel):
    """A test set whose class folders may be named differently from those of train/."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: str | None = None
    """the folder (default: $DENSEVIT_DATA/NAME)"""
    classes: str | None = None
    """folder: as in train/ (default for names that are not known); imagenet: WordNet ids; or a
    file of lines FOLDER CLASS"""
    label_column: str | None = None
    """the column of the labels, of a Hugging Face data set with several"""


class RunConfig(BaseModel):
    """The configuration of one run; execution fields may change between starts of the same run."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, protected_namespaces=(),
        use_attribute_docstrings=True,
    )  # fmt: skip

    # What is trained
    cl_mode: Annotated[str, BeforeValidator(_cl_mode)] = Field(
        "dense",
        description="contrastive loss: "
        + "".join(f"{kind.name} ({kind.help}), " for kind in LOSS_KINDS)
        + "joint (global and dense, as in DenseCL), or none",
    )
    model_name: str = Field("vit_tiny_patch16_224", min_length=1)
    """any timm Vision Transformer, or hf-hub:OWNER/NAME"""
    model_kwargs: Annotated[dict[str, Any], BeforeValidator(canonical)] = {}
    """arguments of timm.create_model (img_size, patch_size, depth, ...), added to those of the base
    file; null removes one"""
    dataset: Name = "imagenet"
    """shapes or shapes-many (drawn, no download), or the name of an image folder"""
    label_column: str | None = Field(None, min_length=1)
    """the column of the labels, of a Hugging Face data set with several (CIFAR-100: fine_label)"""
    unlabelled: bool = False
    """train on images without labels, any below train/ (or data_dir), without a val; accuracies are
    not computed; with lambda_weight 1"""
    # Initial weights and precision
    pretrained: bool = False
    """start from timm's pretrained weights, downloaded if needed"""
    init_checkpoint: str | None = None
    """start from the weights in a file (safetensors, or a timm checkpoint) or in a run directory"""
    init_sha256: Annotated[str | None, AfterValidator(lambda digits: digits and digits[:16])] = (
        Field(None, pattern=r"^[0-9a-f]{16,64}$")
    )
    """SHA-256 (16 digits or more) of the file of init_checkpoint, which identifies the run;
    default: read from the file"""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """of matrix products: float32, bf16 or fp16; losses and norms are always float32"""
    tf32: bool = False
    """compute float32 products in TF32, on GPUs that support it"""
    # Schedule and optimizer
    batch_size: Int = Field(256, ge=1)
    """images per step, over all devices"""
    epochs: Int = Field(100, ge=1)
    """passes over the training images"""
    learning_rate: Annotated[float, BeforeValidator(_learning_rate)] = Field(
        "auto", gt=0, allow_inf_nan=False, validate_default=True
    )
    """peak learning rate of AdamW; auto: 1e-5 with pretrained or init_checkpoint, else 5e-4 *
    batch_size / 512"""
    warmup_epochs: Int = Field(5, ge=0)
    """epochs of linear warm-up before the cosine decay to zero"""
    weight_decay: float = Field(0.05, ge=0, allow_inf_nan=False)
    """weight decay of AdamW (not of biases, norms, position embedding and CLS token)"""
    grad_clip: float = Field(5.0, ge=0, allow_inf_nan=False)
    """maximum gradient norm; 0 disables clipping"""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """the learning rate falls by this factor from each block to the one below it; 1 is the same
    rate everywhere"""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """probability of skipping a block, rising from 0 to this value over the depth"""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """share of each label that is spread over all classes"""
    mixup: float = Field(0.0, ge=0, allow_inf_nan=False)
    """alpha of the Beta distribution of mixup; 0 disables mixup; with a contrastive loss the larger
    share is always the image's own"""
    # The contrastive loss
    lambda_weight: float = Field(0.5, ge=0, le=1)
    """total = (1-w) * classification + w * contrastive; 0 is supervised, 1 is self-supervised
    with a linear probe"""
    contrastive_weight_adaptive: bool = False
    """raise the weight linearly from 0 to lambda_weight over the run"""
    joint_dense_weight: float = Field(0.5, ge=0, le=1)
    """in joint: contrastive = (1-w) * global + w * dense; 0 is MoCo v2"""
    queue_size: Int = Field(65536, ge=1)
    """features in the queue of negatives"""
    temperature: float = Field(0.2, gt=0, allow_inf_nan=False)
    """temperature of the contrastive softmax"""
    learnable_temp: bool = False
    """learn the temperature (its logarithm, starting at temperature)"""
    sampling_strategy: Literal["random", "diverse", "hardest"] = "random"
    """which patches enter the queue: random, diverse, or hardest (least similar to the queue)"""
    sampled_patches: Int = Field(50, ge=1)
    """patches per image that enter the queue"""
    query_patches: Literal["all"] | Annotated[Int, Field(ge=1)] = "all"
    """patches per image that are queries of the loss: all or a number"""
    correspondence_features: Literal["backbone", "dense", "random", "geometry"] = "backbone"
    """how patches are matched: by backbone or dense features, at random, or by their place in
    the image (geometry)"""
    dense_negatives: Literal["patches", "pooled"] = "patches"
    """what enters the queue of the dense loss: sampled patches, or one pooled feature per image"""
    exclude_same_image: bool = True
    """exclude queue entries of the query's own image from the negatives"""
    key_encoder: Literal["shared", "momentum"] = "momentum"
    """what encodes the keys: the trained weights (shared), or their moving average (momentum)"""
    momentum: float = Field(0.999, ge=0, lt=1)
    """decay rate of the moving average of the momentum key encoder"""
    dense_dim: Int = Field(128, ge=1)
    """dimension of the contrastive features"""
    projection_hidden_dim: Int = Field(2048, ge=1)
    """hidden width of the projection heads"""
    # Replicate
    seed: Int = Field(0, ge=0, lt=2**31)
    """seed of a replicate; not part of a cell's identity"""

    # Execution: not part of the identity
    data_dir: str | None = _execution(None)
    """folder with train/ and val/ (default: $DENSEVIT_DATA/DATASET)"""
    benchmarks: dict[Name, str | BenchmarkFolder | None] = _execution({})
    """further test sets: known ones (imagenet-a, ...) or your own, as a mapping of name to
    folder (default: $DENSEVIT_DATA/NAME), added to those of the base file; false removes one"""
    watched: list[Name] = _execution([])
    """test sets to evaluate during training, too; knn and knn-patch are also possible"""
    watch_every: Int = _execution(5, ge=1)
    """epochs between two evaluations of the watched sets"""
    watch_samples: Int = _execution(2000, ge=1)
    """images of each watched set"""
    probes: list[ProbeName] = _execution([])
    """probes of the finished run's frozen features; they read the CLS token or, with -patch, the
    mean of the patch tokens"""
    masks: str | None = _execution(None)
    """images with masks for the dense-probe: a folder, or Pascal VOC (the drawn
    sets have their own)"""
    void: Annotated[list[_Byte], BeforeValidator(_several)] = _execution([255])
    """values of masks that are no class, and are neither trained on nor scored: 255, or several,
    such as [0, 255]"""
    experiment_name: Name = _execution("densevit")
    """MLflow experiment of the run"""
    log_model: bool = _execution(False)
    """log the final network as an MLflow model, besides the metrics"""
    device: Literal["auto", "cpu", "cuda"] = _execution("auto")
    """cpu, cuda, or auto: a GPU if there is one"""
    init_share: float = _execution(0.99, ge=0, le=1)
    """share of the backbone's weights that init_checkpoint must hold, and unless it is 0 also patch
    and position embedding"""
    threads: Int = _execution(1, ge=1)
    """threads of the training process on CPUs, at most its processors; the last digits of a run
    depend on their number"""
    workers: Int = _execution(4, ge=0)
    """processes that load images; 0 loads them in the training process"""
    log_every: Int = _execution(50, ge=1)
    """steps between two lines of metrics"""
    health_every: Int = _execution(1000, ge=1)
    """steps between two measurements of feature health; each epoch ends with one, too"""
    on_collapse: Literal["warn", "stop"] = _execution("warn")
    """warn or stop if the contrastive features collapse"""
    checkpoint_minutes: float = _execution(10.0, gt=0, allow_inf_nan=False)
    """minutes between two checkpoints; each epoch ends with one, too"""
    grad_accumulation: Int = _execution(1, ge=1)
    """parts into which a batch is split to save memory; same results (except with drop_path,
    which draws for each part)"""
    gradient_checkpointing: bool = _execution(False)
    """recompute activations in the backward pass: less memory, same results"""
    compile: bool = _execution(False)
    """compile the network with torch.compile"""
    git_diff: bool = _execution(True)
    """record the uncommitted changes of the code in provenance.json, which MLflow gets, too"""


FIELDS = RunConfig.model_fields
_EXECUTION = {name for name, field in FIELDS.items() if field.json_schema_extra == _EXECUTION_MARK}
# The fields that can distinguish two cells, in order, with their defaults.
SCIENCE: dict[str, Any] = {
    name: field.get_default()
    for name, field in FIELDS.items()
    if name not in _EXECUTION and name != "seed"
}


def is_execution(name: str) -> bool:
    """Return True if a field is not part of a run's identity (paths, workers, device, ...)."""
    return name in _EXECUTION
