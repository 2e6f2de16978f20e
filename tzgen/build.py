# SPDX-License-Identifier: Apache-2.0
"""READ FIRST: how a config becomes a running pipeline. The only file that knows all layers.

    columns --features.FeatureParser--> Batch --embeddings.EmbeddingGroup--> groups
            --models.<Model>--> Outputs --objectives.Objective--> losses and metrics

A verb loads a config, calls `build_pipeline`, and hands the result to train/, export/ or serving/.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor, nn

import tzgen.models  # noqa: F401  registers the models
from tzgen import config as configs
from tzgen.config.features import features_of
from tzgen.config.reduced import without_groups
from tzgen.config.support import triton_runs
from tzgen.config.tasks import TaskSpec, task_specs
from tzgen.config.validate_features import has_table
from tzgen.data.batch import Batch, Ragged, Source
from tzgen.data.loader import BatchCost, BatchLoader
from tzgen.data.readers import open_reader
from tzgen.data.windows import SlidingWindow, WindowParse
from tzgen.embeddings import EmbeddingGroup
from tzgen.errors import ConfigError, Problem, UserError
from tzgen.features import Feature, FeatureParser, create_features
from tzgen.log import LOGGER
from tzgen.models.base import MODELS, Model, Outputs
from tzgen.modules.collectives import of_all_ranks
from tzgen.modules.stu import STULayer
from tzgen.objectives import (
    EvalMetrics,
    LossTerm,
    Objective,
    TrainMetrics,
    make_metrics,
    make_objective,
    predictions,
)
from tzgen.ops.hstu_attention import chosen_kernel

Mode = Literal["train", "eval", "predict"]
Engine = Literal["torchrec", "local"]


@dataclass
class StepOutput:
    """What a forward leaves for logs and metrics; nothing in it keeps the graph alive."""

    loss: Tensor
    terms: dict[str, LossTerm]
    outputs: Outputs
    batch: Batch
    gradient_norm: Tensor | None = None


class Head(nn.Module):
    """Everything above the tables: model, objective, autocast. A leaf for TorchRec's tracer."""

    def __init__(
        self,
        model: Model,
        objective: Objective,
        *,
        dtype: torch.dtype | None,
        sum_over_ranks: Callable[[Tensor], Tensor] | None,
        world_size: int,
    ) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self._dtype, self._sum, self._world_size = dtype, sum_over_ranks, world_size

    def forward(
        self, groups: Mapping[str, Tensor | Ragged], batch: Batch, counts: Tensor | None = None
    ) -> tuple[Tensor, StepOutput]:
        """(loss, StepOutput). `counts`: denominators of the larger batch that this is part of."""
        outputs = self.outputs(groups)
        terms = self.objective(outputs, batch)
        loss = self.objective.combine(
            terms,
            counts=counts,
            all_reduce=self._sum,
            world_size=self._world_size,
            parameters=self.model.parameters(),
        )
        detached = {name: term.detach() for name, term in terms.items()}
        return loss, StepOutput(loss.detach(), detached, outputs.map(Tensor.detach), batch)

    def outputs(self, groups: Mapping[str, Tensor | Ragged], *, predict: bool = False) -> Outputs:
        """The model under the configured autocast; its floating outputs are float32.

        `predict`: what is served (Model.predict) instead of what is trained.
        """
        with self.autocast(_device_of(groups)):
            outputs: Outputs = self.model.predict(dict(groups)) if predict else self.model(groups)
        return outputs.map(_float32)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The configured autocast, as a context."""
        return torch.autocast(device.type, dtype=self._dtype, enabled=self._dtype is not None)

    def counts(self, batch: Batch) -> Tensor:
        """Loss denominators of a whole batch, before it is cut into micro-batches."""
        return self.objective.counts(batch)


class TrainModule(nn.Module):
    """Lookup, then head. TorchRec shards what is in `embeddings` and traces `forward`."""

    def __init__(self, embeddings: EmbeddingGroup, head: Head) -> None:
        super().__init__()
        self.embeddings, self.head = embeddings, head

    def forward(self, batch: Batch) -> tuple[Tensor, StepOutput]:
        return self.head(self.embeddings(batch), batch)


@dataclass
class Pipeline:
    """A config, built."""

    config: Any
    features: tuple[Feature, ...]
    parse: Callable[[pa.RecordBatch, Source], Batch]
    input_columns: list[str]
    module: TrainModule
    engine: Engine
    tasks: tuple[TaskSpec, ...]

    @property
    def model(self) -> Model:
        return self.module.head.model

    def predict(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        """({"probs_is_click": [N], ...}, candidates per row or None) of one batch, no gradients."""
        with torch.no_grad():
            outputs = self.module.head.outputs(self.module.embeddings(batch), predict=True)
            return predictions(outputs, self.tasks), outputs.repeat

    def train_metrics(self) -> TrainMetrics:
        """The tasks' `train_metrics`, decayed, on training batches."""
        return TrainMetrics(self.tasks)

    def eval_metrics(self, *, intervals: bool = False) -> EvalMetrics:
        """New metrics for one evaluation; `intervals`: also over users, where configured."""
        return make_metrics(self.model, self.tasks, self.config.eval_config, intervals=intervals)


def validate(config: Any, paths: Sequence[str] = ()) -> list[Problem]:
    """Everything that is known to be wrong before data is read, the model's own rules included.

    `paths`: the path fields that are going to be used, and so must not be empty.
    """
    problems = configs.validate(config, paths)
    kind = config.model_config.WhichOneof("model")
    if kind in MODELS and not any(problem.path.startswith("model_config") for problem in problems):
        problems = [*problems, *MODELS[kind].check(config.model_config)]
    return problems


def build_pipeline(
    config: Any,
    *,
    device: torch.device | None = None,
    engine: Engine | None = None,
    sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
    world_size: int = 1,
    labels: bool = True,
    reserved_columns: Sequence[str] = (),
    source: str = "config",
) -> Pipeline:
    """Build parser, tables, model and objective; raises ConfigError with every problem at once.

    `engine` None means train_config.embedding_engine. `labels` False parses rows that have none.
    """
    if problems := validate(config):
        raise ConfigError(problems, source)
    seed = config.train_config.seed
    torch.manual_seed(seed)
    device = device or torch.device("cpu")
    model_class = MODELS[config.model_config.WhichOneof("model")]
    if not labels:
        config = without_groups(config, model_class.target_groups)
    if not any(has_table(ref) for ref in features_of(config)):
        engine = "local"  # nothing to shard
    engine = engine or _engine(config.train_config)
    tasks = task_specs(config.model_config, config.data_config.label_fields)
    features = create_features(config)
    parser = FeatureParser(config, features, labels=labels, reserved_columns=reserved_columns)
    embeddings = EmbeddingGroup(
        features,
        config.model_config.feature_groups,
        engine=engine,
        pointwise=model_class.pointwise,
        device=device,
        seed=seed,
    )
    if problems := model_class.check(config.model_config, embeddings.widths):
        raise ConfigError(problems, source)
    model = build_model(config, embeddings.widths, tasks, device)
    _tell_kernel(model, device)
    head = Head(
        model.to(device),
        make_objective(model, tasks, config.model_config, of_all_ranks),
        dtype=_autocast_dtype(config.train_config.mixed_precision),
        sum_over_ranks=sum_over_ranks,
        world_size=world_size,
    )
    parse = embeddings.attach_kjts(parser.parse)
    return Pipeline(
        config, features, parse, parser.input_columns, TrainModule(embeddings, head), engine, tasks
    )


def build_model(
    config: Any,
    widths: Mapping[str, tuple[int, ...]],
    tasks: Sequence[TaskSpec],
    device: torch.device | None = None,
) -> Model:
    """The model alone, for given group widths; its weights depend on train_config.seed only.

    `device`: where it will run, if that is known; only the choice of kernels reads it.
    """
    kind = config.model_config.WhichOneof("model")
    torch.manual_seed(config.train_config.seed)
    kernel = kernel_of(config, device)
    return MODELS[kind](
        getattr(config.model_config, kind), widths=widths, tasks=tasks, kernel=kernel
    )


def kernel_of(config: Any, device: torch.device | None = None) -> str:
    """model_config.kernel as ops understand it; said once where it cannot be what was asked.

    Ops decide what AUTO means when they are called, so that a package that was exported on a CPU is
    fast on a GPU too.
    """
    asked = config.model_config.DESCRIPTOR.fields_by_name["kernel"].enum_type.values_by_number[
        config.model_config.kernel
    ]
    if asked.name == "PYTORCH" or (asked.name == "TRITON" and triton_runs() and _is_cuda(device)):
        return str(asked.name)
    if asked.name == "CUTLASS" or (asked.name == "TRITON" and not triton_runs()):
        LOGGER.warning("model_config.kernel %s: the fastest equivalent runs", asked.name)
    return "AUTO"


def _tell_kernel(model: Model, device: torch.device) -> None:
    """Log once what attention will be computed by, where a model has any."""
    layer = next((layer for layer in model.modules() if isinstance(layer, STULayer)), None)
    if layer is not None and device.type != "meta":
        chosen = chosen_kernel(layer.kernel, device, torch.float32)
        LOGGER.info("attention: kernel %s is %s on %s", layer.kernel, chosen, device)


def _is_cuda(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"


def open_loader(
    pipeline: Pipeline, path: str, *, mode: Mode, env: Any = None, num_workers: int | None = None
) -> BatchLoader:
    """The batches of an input path: shuffled and resumable for "train", in file order otherwise."""
    data = pipeline.config.data_config
    training = mode == "train"
    if not path:
        raise UserError(f"{'train' if training else 'eval'}_input_path is empty: nothing to read")
    cost = None
    columns = list(pipeline.input_columns)
    if training and data.batch_cost_size:
        cost = BatchCost(data.sample_cost_field, data.batch_cost_size)
        columns += [data.sample_cost_field] if data.sample_cost_field not in columns else []
    parse = pipeline.parse
    if training and data.HasField("sliding_window"):
        parse = WindowParse(parse, SlidingWindow.of(data.sliding_window, columns))
    return BatchLoader(
        open_reader(data, path, columns),
        parse=parse,
        batch_size=rows_per_step(pipeline.config, mode),
        seed=pipeline.config.train_config.seed,
        shuffle=training and data.shuffle,
        shuffle_window=data.shuffle_window,
        drop_remainder=training and data.drop_remainder,
        min_batch_size=data.min_batch_size if training else 0,
        rank=env.rank if env else 0,
        world_size=env.world_size if env else 1,
        num_workers=data.num_workers if num_workers is None else num_workers,
        batch_cost=cost,
        pin_memory=data.pin_memory and torch.cuda.is_available(),
    )


def rows_per_step(config: Any, mode: Mode) -> int:
    """Rows a rank takes at once: batch_size times the micro-batches when training."""
    data = config.data_config
    if mode == "train":
        return data.batch_size * max(config.train_config.gradient_accumulation_steps, 1)
    return data.eval_batch_size or data.batch_size


def num_tokens(batch: Batch) -> int:
    """Steps of the longest sequence feature of a batch, all rows together; 0 without sequences."""
    looked_up = [ids.seq_lengths for ids in batch.ids.values() if ids.seq_lengths is not None]
    plain = [value.lengths for value in batch.dense.values() if isinstance(value, Ragged)]
    return max((int(lengths.sum()) for lengths in looked_up + plain), default=0)


def concatenate(parts: Sequence[StepOutput], batch: Batch) -> StepOutput:
    """The outputs of micro-batches as those of the batch they were cut from."""
    names = parts[0].terms
    return replace(
        parts[0],
        loss=torch.stack([part.loss for part in parts]).sum(),
        terms={name: LossTerm.total_of([part.terms[name] for part in parts]) for name in names},
        outputs=Outputs.concatenate([part.outputs for part in parts]),
        batch=batch,
    )


def unwrap(module: nn.Module) -> TrainModule:
    """The TrainModule inside a DistributedModelParallel, or the module itself."""
    inner: Any = module
    while not isinstance(inner, TrainModule):
        inner = inner.module
    return inner


def _engine(train_config: Any) -> Engine:
    asked = train_config.embedding_engine
    names = train_config.DESCRIPTOR.fields_by_name["embedding_engine"].enum_type.values_by_number
    found = importlib.util.find_spec("torchrec") is not None
    if names[asked].name == "AUTO":
        engine: Engine = "torchrec" if found else "local"
        LOGGER.info("train_config.embedding_engine AUTO: %s", engine)
        return engine
    return "torchrec" if names[asked].name == "TORCHREC" else "local"


def _float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _autocast_dtype(name: str) -> torch.dtype | None:
    known = {"": None, "BF16": torch.bfloat16, "FP16": torch.float16}
    if name not in known:
        raise UserError(f"mixed_precision is {name!r}; known: {sorted(known)}")
    return known[name]


def _device_of(groups: Mapping[str, Tensor | Ragged]) -> torch.device:
    value = next(iter(groups.values()))
    return value.values.device if isinstance(value, Ragged) else value.device
