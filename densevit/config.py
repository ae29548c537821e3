"""What one run is: a flat, typed, frozen record, and the identity that follows from it.

A field's name is its flag (`--queue-size`), its YAML key, its grid axis and its MLflow parameter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# Raised when a default or the meaning of a field changes: old results then count as other runs.
SCHEMA_VERSION = 2
ID_LENGTH = 12
TEMPERATURE_RANGE = (0.01, 1.0)  # of a learned temperature
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _whole(value: Any) -> Any:
    """`1.0` means 1; anything else is left for the type check."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _canonical(value: Any) -> Any:
    """Equal values as equal data: 1.0 is 1, -0.0 is 0, in nested data too."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    return value


Probe = Literal["knn", "knn-patch", "linear-probe", "linear-probe-patch", "dense-probe"]
PROBES: tuple[Probe, ...] = get_args(Probe)
Int = Annotated[int, BeforeValidator(_whole)]
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]


def _execution(default: Any, description: str, **limits: Any) -> Any:
    """A field that says how or where a run is executed, and is no part of its identity."""
    return Field(default, description=description, json_schema_extra={"execution": True}, **limits)


class BenchmarkFolder(BaseModel):
    """A test set whose class folders need not be called as the classes of train/."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: str | None = Field(None, description="its folder (default: $DENSEVIT_DATA/NAME)")
    classes: str | None = Field(
        None,
        description="folder: as in train/ (default for names that are not known); imagenet: "
        "WordNet ids; or a file of lines FOLDER CLASS",
    )


class RunConfig(BaseModel):
    """One run. Fields marked as execution may change between two starts of the same run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    # What is learned
    cl_mode: Literal["dense", "global", "none", "joint"] = Field(
        "dense",
        description="contrastive loss: dense (patches), global (CLS token), none, "
        "or joint = both, as in DenseCL",
    )
    model_name: str = Field(
        "vit_tiny_patch16_224", description="any timm Vision Transformer", min_length=1
    )
    model_kwargs: Annotated[dict[str, Any], BeforeValidator(_canonical)] = Field(
        {}, description="passed to timm.create_model (img_size, patch_size, depth, ...)"
    )
    dataset: Name = Field(
        "imagenet", description="shapes (drawn, no download), or the name of an image folder"
    )
    # How long and how fast
    batch_size: Int = Field(256, description="images a step, over all devices", ge=1)
    epochs: Int = Field(100, description="passes over the training images", ge=1)
    learning_rate: float = Field(
        1e-5, description="peak of AdamW's learning rate", gt=0, allow_inf_nan=False
    )
    warmup_epochs: Int = Field(
        5, description="epochs of linear warm-up before the cosine decay to zero", ge=0
    )
    weight_decay: float = Field(
        0.05,
        description="AdamW's weight decay (not on biases and norms)",
        ge=0,
        allow_inf_nan=False,
    )
    grad_clip: float = Field(
        5.0, description="largest norm of the gradient; 0 does not clip", ge=0, allow_inf_nan=False
    )
    layer_decay: float = Field(
        1.0,
        description="the learning rate falls by this factor from each block to the one below "
        "it; 1 is the same everywhere",
        gt=0,
        le=1,
    )
    drop_path: float = Field(
        0.0,
        description="probability of leaving out a block, rising from 0 to this over the depth",
        ge=0,
        lt=1,
    )
    label_smoothing: float = Field(
        0.0, description="share of each label that is spread over all classes", ge=0, lt=1
    )
    mixup: float = Field(
        0.0,
        description="alpha of the Beta distribution that mixes pictures; 0 mixes none",
        ge=0,
        allow_inf_nan=False,
    )
    # Where it begins, and how exactly it computes
    pretrained: bool = Field(False, description="begin with timm's weights, fetched when needed")
    init_checkpoint: str | None = Field(
        None,
        description="begin with the weights of a file (safetensors, or a checkpoint of timm) "
        "or of a run directory",
    )
    precision: Literal["float32", "bf16", "fp16"] = Field(
        "float32", description="of the network's products; losses and norms are float32 always"
    )
    tf32: bool = Field(False, description="float32 products in TF32, on GPUs that have it")
    # The contrastive loss
    lambda_weight: float = Field(
        0.5,
        description="total = (1-w) * classification + w * contrastive; 0 is supervised, 1 "
        "self-supervised with a linear probe beside it",
        ge=0,
        le=1,
    )
    contrastive_weight_adaptive: bool = Field(
        False, description="the weight rises linearly from 0 to lambda_weight over the run"
    )
    joint_dense_weight: float = Field(
        0.5,
        description="of joint: contrastive = (1-w) * global + w * dense; 0 is MoCo v2",
        ge=0,
        le=1,
    )
    queue_size: Int = Field(65536, description="features held as negatives", ge=1)
    temperature: float = Field(
        0.2, description="of the contrastive softmax", gt=0, allow_inf_nan=False
    )
    learnable_temp: bool = Field(
        False, description="the temperature is learned (as its logarithm, from `temperature`)"
    )
    sampling_strategy: Literal["random", "diverse", "hardest"] = Field(
        "random", description="which of an image's patches enter the queue"
    )
    sampled_patches: Int = Field(50, description="how many patches an image enter the queue", ge=1)
    query_patches: Literal["all"] | Annotated[Int, Field(ge=1)] = Field(
        "all", description="how many patches an image are queries of the loss: all or a number"
    )
    correspondence_features: Literal["backbone", "dense", "random", "geometry"] = Field(
        "backbone",
        description="what the matching of patches compares: backbone or dense features, nothing "
        "(random), or where they lie in the picture (geometry)",
    )
    dense_negatives: Literal["patches", "pooled"] = Field(
        "patches",
        description="what the queue of the dense loss holds: sampled patches, or one pooled "
        "feature an image",
    )
    exclude_same_image: bool = Field(
        True, description="leave out queue entries that come from the query's own image"
    )
    key_encoder: Literal["shared", "momentum"] = Field(
        "shared", description="what encodes the keys: the same weights, or their moving average"
    )
    momentum: float = Field(0.999, description="of the momentum key encoder", ge=0, lt=1)
    dense_dim: Int = Field(128, description="contrastive dimension", ge=1)
    projection_hidden_dim: Int = Field(
        2048, description="hidden width of the projection heads", ge=1
    )
    # A replicate
    seed: Int = Field(0, description="a replicate; no part of a cell's identity", ge=0, lt=2**31)

    # How it is executed: no part of the identity
    data_dir: str | None = _execution(
        None, "folder with train/ and val/ (default: $DENSEVIT_DATA/DATASET)"
    )
    benchmarks: dict[Name, str | BenchmarkFolder | None] = _execution(
        {},
        "further test sets: a known name (imagenet-a, ...) or one of your own, to its folder; "
        "without one it lies in $DENSEVIT_DATA/NAME",
    )
    watched: list[Name] = _execution(
        [], "test sets that are also looked at while the run trains; knn and knn-patch, too"
    )
    watch_every: Int = _execution(5, "epochs between two looks at the watched sets", ge=1)
    watch_samples: Int = _execution(2000, "pictures of each watched set", ge=1)
    probes: list[Probe] = _execution(
        [],
        "what the finished run's frozen features are tried at; "
        "of the CLS token, or with -patch of the mean of the patch tokens",
    )
    masks: str | None = _execution(
        None, "pictures with masks for the dense-probe: a folder, or VOC's (shapes has its own)"
    )
    experiment_name: Name = _execution("densevit", "the MLflow experiment that shows the run")
    log_model: bool = _execution(
        False, "the final network is logged as an MLflow model, beside the numbers"
    )
    device: Literal["auto", "cpu", "cuda"] = _execution(
        "auto", "auto takes a GPU when there is one"
    )
    workers: Int = _execution(4, "processes that load images; 0 loads in the run itself", ge=0)
    log_every: Int = _execution(50, "steps between two logged lines", ge=1)
    health_every: Int = _execution(
        1000,
        "steps between two looks at the features' health, which each epoch ends with too",
        ge=1,
    )
    on_collapse: Literal["warn", "stop"] = _execution(
        "warn", "what to do when the contrastive features collapse"
    )
    checkpoint_minutes: float = _execution(
        10.0,
        "minutes between two checkpoints; each epoch ends with one too",
        gt=0,
        allow_inf_nan=False,
    )
    grad_accumulation: Int = _execution(
        1,
        "parts that a batch is worked on in, one after the other: less memory, same results "
        "(but for drop_path, which draws for each part)",
        ge=1,
    )
    gradient_checkpointing: bool = _execution(
        False, "activations are computed again for the gradient: less memory, same results"
    )
    compile: bool = _execution(False, "the network is compiled by torch.compile")

    def science(self) -> dict[str, Any]:
        """What makes the run's cell: applicable science fields that differ from their default."""
        values, unused = self.__dict__, inapplicable(self)
        return {
            name: _canonical(values[name])
            for name, default in SCIENCE.items()
            if values[name] != default and name not in unused
        }


FIELDS = RunConfig.model_fields
_EXECUTION = {n for n, f in FIELDS.items() if (f.json_schema_extra or {}).get("execution")}
# The fields that may tell two cells apart, in their order, with their defaults.
SCIENCE: dict[str, Any] = {
    name: field.get_default()
    for name, field in FIELDS.items()
    if name not in _EXECUTION and name != "seed"
}

_CONTRASTIVE = {
    "contrastive_weight_adaptive", "queue_size", "temperature", "learnable_temp",
    "exclude_same_image", "key_encoder", "dense_dim", "projection_hidden_dim",
}  # fmt: skip
_DENSE = {"query_patches", "correspondence_features", "dense_negatives"}
_PATCH_NEGATIVES = {"sampling_strategy", "sampled_patches"}


def loss_weights(config: RunConfig) -> dict[str, float]:
    """The contrastive losses that a run computes, `global` and `dense`, and the weight of each.

    The weights add to 1. Empty without a contrastive loss: `cl_mode: none`, or `lambda_weight: 0`.
    """
    if config.cl_mode == "none" or config.lambda_weight == 0:
        return {}
    dense = {"global": 0.0, "dense": 1.0, "joint": config.joint_dense_weight}[config.cl_mode]
    return {k: w for k, w in (("global", 1.0 - dense), ("dense", dense)) if w > 0}


def self_supervised(config: RunConfig) -> bool:
    """Whether the backbone learns from the contrastive loss alone: λ = 1 from the first step.

    The classification head then is a linear probe on features that it does not change.
    """
    constant = not config.contrastive_weight_adaptive
    return bool(loss_weights(config)) and config.lambda_weight == 1 and constant


def inapplicable(config: RunConfig) -> frozenset[str]:
    """The fields that mean nothing under the run's other choices (its cl_mode above all)."""
    losses = tuple(loss_weights(config))
    return _inapplicable(config.cl_mode, losses, config.dense_negatives, config.key_encoder)


@cache
def _inapplicable(
    cl_mode: str, losses: tuple[str, ...], dense_negatives: str, key_encoder: str
) -> frozenset[str]:
    unused: set[str] = set()
    if cl_mode == "none":
        unused.add("lambda_weight")
    if cl_mode != "joint" or not losses:
        unused.add("joint_dense_weight")
    if not losses:
        unused |= _CONTRASTIVE
    if "dense" not in losses:
        unused |= _DENSE
    if "dense" not in losses or dense_negatives != "patches":
        unused |= _PATCH_NEGATIVES
    if not losses or key_encoder != "momentum":
        unused.add("momentum")
    return frozenset(unused)


def applies(name: str, config: RunConfig) -> bool:
    """Whether a field means anything under the run's other choices (its cl_mode above all)."""
    return name not in inapplicable(config)


def is_execution(name: str) -> bool:
    """Whether a field is no part of a run's identity (paths, workers, device, ...)."""
    return name in _EXECUTION


class Identity(NamedTuple):
    """`run` and `cell` are hashes of `preimage` with and without its seed."""

    run: str
    cell: str
    preimage: dict[str, Any]


def identity(config: RunConfig) -> Identity:
    """The ids of a run: equal on every machine and under every launcher."""
    text = cell_text(science_texts(config), config)
    preimage = {
        "schema_version": SCHEMA_VERSION, "config": config.science(), "seed": config.seed,
    }  # fmt: skip
    return Identity(run_id(text, config.seed), digest(text), preimage)


def science_texts(config: RunConfig) -> dict[str, str]:
    """Each science field as it is hashed, sorted by name; empty where it has its default.

    A text depends on its own field alone, so that those of many runs can share them.
    """
    values = config.__dict__
    return {
        name: f'"{name}":{_JSON.encode(_canonical(values[name]))}'
        if values[name] != SCIENCE[name]
        else ""
        for name in sorted(SCIENCE)
    }


def cell_text(texts: Mapping[str, str], config: RunConfig) -> str:
    """The canonical JSON (sorted keys, no spaces) whose hash is a cell's id.

    `texts` are the `science_texts` of `config`, or at least those of them that are not empty.
    """
    unused = inapplicable(config)
    science = ",".join([text for name, text in texts.items() if text and name not in unused])
    return f'{{"config":{{{science}}},"schema_version":{SCHEMA_VERSION}}}'


def run_id(cell: str, seed: int) -> str:
    """The id of a run, from the `cell_text` of its cell and its seed."""
    # Of the sorted keys `seed` is the last, and can be appended to what is there.
    return digest(f'{cell[:-1]},"seed":{seed}}}')


def digest(text: str) -> str:
    """The id that a canonical JSON text hashes to."""
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)
