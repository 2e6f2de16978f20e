# SPDX-License-Identifier: Apache-2.0
"""HSTU messages for tests: a small base and the variants that the project promises."""

from __future__ import annotations

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor

from tzgen.protos import module_pb2


def older_spellings(descriptor: Descriptor) -> list[str]:
    """Fields of TorchEasyRec's first version, which config/dialect.py rewrites on reading."""
    return [field.name for field in descriptor.fields if field.number >= 2000]


SIMPLE = "simple_mlp { hidden_dim: 6 }"
PARAMETERIZED = "parameterized_mlp { hidden_dim: 4 contextual_dropout_ratio: 0 }"
ACTIONS = """
    action_encoder { simple_action_encoder { action_embedding_dim: 3 action_weights: [1, 2, 4] } }
    action_mlp { %s }"""
WATCHTIME = """
    action_encoder { simple_action_encoder {
      action_embedding_dim: 2 action_weights: [1, 2]
      watchtime_to_action_thresholds: [20, 40] watchtime_to_action_weights: [8, 16] } }
    action_mlp { %s }"""


def preprocessor(
    kind: str = "contextual_preprocessor",
    *,
    content: str = "slice_content_encoder {}",
    mlp: str = SIMPLE,
    actions: str = ACTIONS,
) -> str:
    action = actions % mlp if actions else ""
    return f"{kind} {{ {action} content_encoder {{ {content} }} content_mlp {{ {mlp} }} }}"


def hstu(
    stu: str = "",
    *,
    inputs: str | None = None,
    positions: str = "num_time_buckets: 40 use_time_encoding: true",
    output: str = "layernorm_postprocessor {}",
    extra: str = "",
) -> module_pb2.HSTU:
    """A transducer of width 8 with two layers and no dropout."""
    return text_format.Parse(
        f"""
        stu {{ embedding_dim: 8 num_heads: 2 hidden_dim: 3 attention_dim: 5
               output_dropout_ratio: 0 {stu} }}
        input_dropout_ratio: 0
        attn_num_layers: 2
        positional_encoder {{ num_position_buckets: 12 {positions} }}
        input_preprocessor {{ {inputs or preprocessor()} }}
        output_postprocessor {{ {output} }}
        {extra}
        """,
        module_pb2.HSTU(),
    )


INTERLEAVE = "contextual_interleave_preprocessor"
MLPS = """mlp_content_encoder { uih_mlp { hidden_units: [7, 5] use_ln: false activation: "nn.Tanh" }
                               target_mlp { hidden_units: 5 activation: "nn.SiLU" } }"""
TIMESTAMP_NORM = """timestamp_layernorm_postprocessor {
    time_duration_period_units: [3600, 86400] time_duration_units_per_period: [24, 7] }"""
CUT = "attn_truncation_split_layer: 1 attn_truncation_tail_len: 3 "

VARIANTS: dict[str, module_pb2.HSTU] = {
    "production": hstu(),
    "interleaved": hstu(inputs=preprocessor(INTERLEAVE)),
    "interleaving off": hstu(
        inputs=preprocessor(INTERLEAVE).replace(
            INTERLEAVE + " {", INTERLEAVE + " { enable_interleaving: false "
        )
    ),
    "no actions": hstu(inputs=preprocessor(actions="")),
    "watch times": hstu(inputs=preprocessor(actions=WATCHTIME)),
    "parameterized": hstu(inputs=preprocessor(mlp=PARAMETERIZED)),
    "parameterized interleaved": hstu(inputs=preprocessor(INTERLEAVE, mlp=PARAMETERIZED)),
    "pad": hstu(inputs=preprocessor(content="pad_content_encoder {}")),
    "mlp content": hstu(inputs=preprocessor(content=MLPS)),
    "paper": hstu("preset: PAPER", positions=""),
    "paper interleaved": hstu(
        "preset: PAPER attn_alpha: 0.7 relative_bias { num_time_buckets: 9 max_seq_len: 5 }",
        inputs=preprocessor(INTERLEAVE),
    ),
    "q and k activated": hstu('activated: "uqk" output_form: UX'),
    "window": hstu("max_attn_len: 3"),
    "window as upstream": hstu("max_attn_len: 3 window_keeps_contextual: false"),
    "group norm": hstu("use_group_norm: true"),
    "contextual as history": hstu("contextual_seq_len: 0"),
    "append stable": hstu("append_stable: true relative_bias {}", positions=""),
    "scaling": hstu("scaling_seqlen: 7 attn_alpha: 0.9"),
    "log ages": hstu(
        positions='num_time_buckets: 6 use_time_encoding: true time_bucket_fn: "log" '
        "time_bucket_increments: 300"
    ),
    "mtgr": hstu(extra="mtgr {}"),
    "mtgr static": hstu("max_attn_len: 6", extra="mtgr { realtime_len: 3 }"),
    "mtgr norms only": hstu(extra="mtgr { timestamp_mask: false }"),
    "tail sees all": hstu("max_attn_len: 2 full_attn_tail: 2"),
    "semi-local": hstu("sla_k1: 2 sla_k2: 3"),
    "semi-local paper": hstu("preset: PAPER sla_k1: 2", positions=""),
    "truncated": hstu(extra=CUT),
    "truncated interleaved": hstu(inputs=preprocessor(INTERLEAVE), extra=CUT),
    "truncated mtgr": hstu(extra=CUT + "mtgr { realtime_len: 2 }"),
    "truncated paper": hstu("preset: PAPER max_attn_len: 2", positions="", extra=CUT),
    "truncated semi-local": hstu("sla_k1: 2 sla_k2: 3 use_group_norm: true", extra=CUT),
    "l2": hstu(output="l2norm_postprocessor {}"),
    "timestamp norm": hstu(output=TIMESTAMP_NORM),
}
