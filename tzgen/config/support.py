# SPDX-License-Identifier: Apache-2.0
"""Which fields of the schema are honoured, replaced with a warning, or refused by name.

A field that is not listed is honoured: it is read where it says. Nothing that is set is ignored in
silence. Keys are `Message.field`, `*.field` for every message, and `Message.field=VALUE` for one
value of an enum or string field.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tzgen.config.schema import is_message, join, walk
from tzgen.errors import Problem

# Field numbers from here up are forms that TorchEasyRec itself no longer writes.
EARLIER = 2000
# Models that write items of a bundle of semantic IDs.
GENERATORS = ("tiger", "genrec")
# Models that learn from items and sequences themselves: no tasks, no labels.
WITHOUT_TASKS = ("sid_rqvae", "sid_rqkmeans", "sid_opq", *GENERATORS)
# Members of ModelConfig.model that can be trained.
MODELS = (
    "dlrm_hstu",
    "ultra_hstu",
    "simple_multi_task",
    "mmoe",
    "ple",
    *WITHOUT_TASKS,
)


class Status(Enum):
    HONOURED = "honoured"
    REPLACED = "replaced"  # accepted; what happens instead is said once
    REFUSED = "refused"


@dataclass(frozen=True)
class Support:
    """A status and the sentence that explains it: what happens instead, or what to do."""

    status: Status
    text: str


def _replaced(text: str) -> Support:
    return Support(Status.REPLACED, text)


def _refused(text: str) -> Support:
    return Support(Status.REFUSED, text)


_SAMPLER = _refused("Negative samplers come with the match models. Remove it.")
_MAXCOMPUTE = _replaced("Only read by the MaxCompute reader; without effect on files.")
_ODPS = _refused("MaxCompute is not supported yet. Use ParquetDataset or CsvDataset.")
_KERNELS = _refused(
    "Public fbgemm-gpu has no such kernel. Use rowwise_adagrad_optimizer or adagrad_optimizer."
)
_CUSTOM = _refused(
    "Shared libraries of pyfg cannot be loaded. Generate the column before training."
)
_KV_DOT = _refused(
    "Not supported yet. Generate the column before training and read it as raw_feature."
)
_COMBINE = _refused(
    "Not supported yet. Generate the column before training and read it as raw_feature."
)
_EVENT_TIME = _refused(
    "Checkpoints by event time come with stream readers. Use save_checkpoints_steps."
)
_MASK = _refused("Masking of features in training is not supported yet. Remove it.")

TRITON = "ModelConfig.kernel=TRITON"  # replaced only on a machine that cannot run it

TABLE: Mapping[str, Support] = MappingProxyType(
    {
        # ---- data ----
        "DataConfig.dataset_type=OdpsDataset": _ODPS,
        "DataConfig.dataset_type=OdpsDatasetV1": _ODPS,
        "DataConfig.dataset_type=KafkaDataset": _refused(
            "Kafka is not supported yet. Use ParquetDataset or CsvDataset."
        ),
        "DataConfig.negative_sampler": _SAMPLER,
        "DataConfig.negative_sampler_v2": _SAMPLER,
        "DataConfig.hard_negative_sampler": _SAMPLER,
        "DataConfig.hard_negative_sampler_v2": _SAMPLER,
        "DataConfig.tdm_sampler": _SAMPLER,
        "DataConfig.sample_mask_prob": _MASK,
        "DataConfig.negative_sample_mask_prob": _MASK,
        "DataConfig.fg_encoded": _replaced(
            "Older spelling, read as fg_mode where fg_mode is unset."
        ),
        "DataConfig.fg_threads": _replaced(
            "Feature generation is vectorised; num_workers scales it."
        ),
        "DataConfig.shuffle_buffer_size": _replaced(
            "Rows are shuffled, not batches; shuffle_window says how many row groups mix."
        ),
        "DataConfig.in_order=false": _replaced("Batches are always delivered in order."),
        "DataConfig.force_base_data_group": _replaced(
            "User and item features are one group already."
        ),
        "DataConfig.enable_hstu": _replaced("model_config alone chooses the model."),
        "DataConfig.is_orderby_partition": _MAXCOMPUTE,
        "DataConfig.odps_data_quota_name": _MAXCOMPUTE,
        "DataConfig.odps_data_compression": _MAXCOMPUTE,
        # ---- features ----
        "*.zch": _refused("Zero-collision hashing is not supported yet. Use hash_bucket_size."),
        "*.dynamicemb": _refused("Dynamic tables are not supported yet. Use hash_bucket_size."),
        "*.custom_feature": _CUSTOM,
        "*.sequence_custom_feature": _CUSTOM,
        "*.kv_dot_product": _KV_DOT,
        "*.sequence_kv_dot_product": _KV_DOT,
        "*.combine_feature": _COMBINE,
        "*.sequence_combine_feature": _COMBINE,
        "*.sequence_sid_feature": _refused(
            "Not supported. Write a grouped sequence_feature whose id_feature has value_dim."
        ),
        "*.use_mask": _replaced("Without effect: masking in training is off (sample_mask_prob)."),
        "*.fg_value_type": _replaced("Only a hint for pyfg; types come from the columns."),
        "SequenceFeature.sequence_pk": _replaced(
            "Only a key of the closed TorchEasyRec Processor."
        ),
        "SeqEncoderConfig.hstu_encoder": _refused(
            "TorchEasyRec removed it. Use the model hstu_match."
        ),
        # ---- model ----
        "ModelConfig.kernel=CUTLASS": _replaced(
            "There are no CUTLASS kernels; the fastest equivalent of the device runs."
        ),
        TRITON: _replaced("Where Triton cannot run (no CUDA device), PYTORCH computes the same."),
        "ExportConfig.format=ONNX": _refused("ONNX is not supported yet. Use AOTI or EAGER."),
        "ModelConfig.variational_dropout": _refused(
            "Feature selection by variational dropout is not supported. Remove it."
        ),
        "STU.sort_by_length": _replaced("Only an order of work; the kernels schedule themselves."),
        "FaissKmeansConfig.min_points_per_centroid": _replaced(
            "Only a threshold of a warning; fewer points than centroids are refused."
        ),
        "FaissKmeansConfig.verbose": _replaced("The fit is tzgen's own; its result is measured."),
        "*.input_dim": _replaced("Follows from the feature group."),
        "*.embedding_feature_name": _replaced("Follows from the feature group."),
        # ---- training ----
        "SparseOptimizer.adadelta_optimizer": _KERNELS,
        "SparseOptimizer.rmsprop_optimizer": _KERNELS,
        "SparseOptimizer.ftrl_optimizer": _KERNELS,
        "GradClipping.enable_global_grad_clip": _replaced(
            "Dense gradients are whole on every rank, so the norm is global already."
        ),
        "TrainConfig.grad_scaler": _refused(
            'Fused sparse optimizers would see scaled gradients. Use mixed_precision: "BF16".'
        ),
        "TrainConfig.mixed_precision=FP16": _refused(
            'FP16 needs a loss scale, which fused sparse optimizers cannot undo. Use "BF16".'
        ),
        "TrainConfig.is_profiling": _replaced("No trace is written; run it under torch.profiler."),
        "TrainConfig.tensorboard_summaries": _replaced(
            "Losses, rates, metrics and, when clipping, the gradient norm are written; no others."
        ),
        "TrainConfig.delta_embedding_dump_config": _refused(
            "Dumps of changed rows are not supported. Remove it; export whole tables."
        ),
        "TrainConfig.save_checkpoints_timestamp_interval": _EVENT_TIME,
        "TrainConfig.save_checkpoints_timestamps": _EVENT_TIME,
        "TrainConfig.save_checkpoints_timestamp_quorum": _replaced(
            "Without effect: there are no checkpoints by event time."
        ),
        "ExportConfig.export_format=HF": _refused(
            "Only language models export to Hugging Face's form. Use format: AUTO."
        ),
        # ---- prompts ----
        "PipelineConfig.prompt_config": _refused(
            "Language-model generators are not supported. Remove it."
        ),
    }
)

_HONOURED = Support(Status.HONOURED, "")
_EARLIER = _refused(
    "An earlier form of TorchEasyRec: write what the schema's comment names instead."
)


def support_of(message: str, field: str, number: int = 0) -> Support:
    """The status of a field whatever it holds; values of enums and strings may differ (TABLE)."""
    listed = TABLE.get(f"{message}.{field}", TABLE.get(f"*.{field}"))
    if listed is None:
        return _EARLIER if number >= EARLIER else _HONOURED
    return listed


def unsupported(config: Message) -> list[Problem]:
    """One Problem for each thing that is set and cannot be honoured; model first.

    Fields of one message that get the same answer (both mask probabilities) are one Problem.
    """
    refusal = model_refusal(config)
    together: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for path, shown, support in listed_fields(config):
        if support.status is Status.REFUSED:
            parent = path.rpartition(".")[0]
            together.setdefault((parent, support.text), []).append((path, shown))
    found = [] if refusal is None else [refusal]
    for (parent, text), fields in together.items():
        (path, shown), *others = fields
        beside = [f"{other.removeprefix(f'{parent}.')} {value}" for other, value in others]
        value = ", ".join([shown, *beside])
        found.append(Problem(path, value, "a field that is supported", text))
    return found


def replaced(config: Message) -> list[str]:
    """One sentence for each thing that is set and replaced: "path: value. What happens instead"."""
    return [
        f"{path} ({shown}): {support.text}"
        for path, shown, support in listed_fields(config)
        if support.status is Status.REPLACED
    ]


def model_refusal(config: Message) -> Problem | None:
    """The one refusal of a model that is not supported, or of a config without a model."""
    name = config.model_config.WhichOneof("model")
    expected = f"one of {', '.join(MODELS)}"
    if name is None:
        return Problem(
            "model_config", "no model", expected, f"Write {MODELS[0]} {{ ... }} inside it."
        )
    if name in MODELS:
        return None
    return Problem(
        f"model_config.{name}",
        f"the model {name}",
        expected,
        "It parses and cannot be trained yet. Choose another model.",
    )


def listed_fields(config: Message) -> Iterator[tuple[str, str, Support]]:
    """(path, value as text, support) of every set field that is not simply honoured.

    A scalar that holds its default asks for nothing and is left out.
    """
    for path, message in walk(config):
        name = message.DESCRIPTOR.name
        for field, value in message.ListFields():
            shown = _shown(field, value)
            key = f"{name}.{field.name}={shown}"
            support = TABLE.get(key)
            if key == TRITON and triton_runs():
                continue
            if support is None:
                if not (field.is_repeated or is_message(field)) and value == field.default_value:
                    continue
                support = support_of(name, field.name, field.number)
            if support.status is not Status.HONOURED:
                yield join(path, field.name), shown, support


def triton_runs() -> bool:
    """Whether this machine has what Triton kernels need: the package and a CUDA device."""
    import torch

    return importlib.util.find_spec("triton") is not None and torch.cuda.is_available()


def _shown(field: FieldDescriptor, value: object) -> str:
    if field.is_repeated:
        return f"{len(value)} entries"  # type: ignore[arg-type]
    if is_message(field):
        return f"{field.name} {{ ... }}"
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name)
    return str(value).lower() if isinstance(value, bool) else str(value)
