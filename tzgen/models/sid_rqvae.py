# SPDX-License-Identifier: Apache-2.0
"""SidRqvae: encoder, residual quantization, decoder; items get the codes of their encoding.

    z = E(x);  codes, q = RQ(z);  x_hat = D(q)

Losses read what `forward` leaves (objectives/sid_objective.py). Sources: Lee et al. 2022, Rajput et
al. 2023 (TIGER); config of TorchEasyRec's sid_rqvae; CoST and LETTER as losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from google.protobuf.message import Message

from tzgen.config.options import options
from tzgen.config.tasks import TaskSpec
from tzgen.embeddings import Groups
from tzgen.errors import Problem
from tzgen.models.base import MODELS, GroupRule, Outputs
from tzgen.models.sid_base import DEEP, Tokenizer, codebook_of, main_group, told_as
from tzgen.models.sid_candidates import candidate_options, decoded_codes
from tzgen.modules.autoencoder import CodeClusters, Projector
from tzgen.modules.kmeans import KMeansOptions
from tzgen.modules.quantizers import (
    DeadCodeOptions,
    EmaOptions,
    GumbelOptions,
    QuantizerOptions,
    ResidualQuantizer,
    SinkhornOptions,
)

KINDS = {"forward_mode": ("ste", "gumbel_softmax"), "distance_type": ("l2", "cosine")}


@MODELS.register("sid_rqvae")
class SidRqvae(Tokenizer):
    """The tokenizer of the module docstring."""

    def __init__(
        self,
        config: Message,
        *,
        widths: Mapping[str, tuple[int, ...]],
        tasks: Sequence[TaskSpec],
        kernel: str,
    ) -> None:
        super().__init__(config, widths=widths, tasks=tasks, kernel=kernel)
        self.codebook = codebook_of(config)
        named = {rule.name for rule in self.other_groups(config)}
        self.group = main_group(config, [name for name in widths if name not in named])
        dim = sum(widths[self.group])
        hidden = tuple(config.hidden_dims) or (max(dim // 2, 1),)
        dropout = config.dropout_ratio
        self.encoder = Projector(dim, hidden, config.embed_dim, dropout=dropout)
        self.quantizer = ResidualQuantizer(quantizer_options(config), config.embed_dim)
        self.decoder = Projector(config.embed_dim, hidden[::-1], dim, dropout=dropout)
        self.clusters: CodeClusters | None = None
        if config.HasField("diversity"):
            self.clusters = CodeClusters(
                self.codebook,
                num_clusters=config.diversity.num_clusters,
                interval=config.diversity.interval,
            )
        self.candidates = candidate_options(config)
        self.pair = config.contrastive_config if config.HasField("contrastive_config") else None
        self.collaborative_group = config.collaborative_feature_group
        self._start_rows = config.kmeans_init_rows if config.kmeans_init else 0

    def forward(self, groups: Groups) -> Outputs:
        x = self.item_vectors(groups, self.group)
        z = self.encoder(x)
        found = self.quantizer(z)
        tensors = {
            "inputs": x,
            "encoded": z,
            "cumulative": found.cumulative,
            "quantized": found.out,
            "decoded": self.decoder(found.out),
            "gap": found.gap,
        }
        if self.clusters is not None:
            tensors["diversity"] = self.clusters(found.codes, list(self.quantizer.codebooks))
        if self.collaborative_group:
            tensors["collaborative"] = self.item_vectors(groups, self.collaborative_group)
        if self.pair is not None:
            other = self.item_vectors(groups, self.pair.pair_feature_group)
            tensors["pair_inputs"] = other
            found_other = self.quantizer(self.encoder(other))
            tensors["pair_decoded"] = self.decoder(found_other.out)
            flag = self.item_vectors(groups, self.pair.pair_flag_feature_group)
            tensors["is_pair"] = (flag[:, 0] > 0.5).to(x.dtype)
        return Outputs({}, tensors, decoded={"codes": found.codes})

    def end_step(self) -> None:
        self.quantizer.end_step()
        if self.clusters is not None:
            self.clusters.end_step()

    def predict(self, groups: Groups) -> Outputs:
        z = self.encoder(self.item_vectors(groups, self.group))
        return Outputs({}, decoded=decoded_codes(self.quantizer, z, self.candidates))

    @property
    def start_rows(self) -> int:
        return self._start_rows

    def prepare(self, batches: Iterator[Groups]) -> None:
        """kmeans_init: the codebooks from the first encodings of all ranks, without dropout."""
        training = self.training
        self.eval()
        with torch.no_grad(), told_as("model_config.sid_rqvae.kmeans_init"):
            z = [self.encoder(self.item_vectors(groups, self.group)) for groups in batches]
            none = self.quantizer.codebooks[0][:0]  # this process may have no rows
            self.quantizer.init_from(torch.cat([none, *z]), KMeansOptions())
        self.train(training)

    @classmethod
    def other_groups(cls, config: Message) -> tuple[GroupRule, ...]:
        rules = []
        if config.HasField("contrastive_config"):
            pair = config.contrastive_config
            rules.append(GroupRule(pair.pair_feature_group, DEEP, "contrastive_config"))
            rules.append(GroupRule(pair.pair_flag_feature_group, DEEP, "contrastive_config"))
        if config.collaborative_feature_group:
            name = config.collaborative_feature_group
            rules.append(GroupRule(name, DEEP, "collaborative_feature_group"))
        return tuple(rules)

    @classmethod
    def check(
        cls, model_config: Message, widths: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[Problem]:
        config, path = model_config.sid_rqvae, "model_config.sid_rqvae"
        problems = super().check(model_config, widths)
        problems += _option_problems(config, path)
        problems += _loss_problems(model_config, config)
        if widths is not None and not problems:
            problems += _width_problems(config, path, widths)
        return problems


def quantizer_options(config: Any) -> QuantizerOptions:
    """The quantizer's part of a SidRqvae message. An unset sinkhorn_config is on with its defaults,
    as TorchEasyRec has it; not with gumbel_softmax, which chooses by itself."""
    gumbel_mode = config.forward_mode == "gumbel_softmax"
    restart = config.HasField("dead_code_restart")
    return QuantizerOptions(
        codebook=codebook_of(config),
        forward_mode=config.forward_mode,
        rotation_trick=config.rotation_trick,
        distance_type=config.distance_type,
        normalize_residuals=config.normalize_residuals,
        sinkhorn=None if gumbel_mode else options(SinkhornOptions, config.sinkhorn_config),
        ema=options(EmaOptions, config.ema) if config.HasField("ema") else None,
        dead_codes=options(DeadCodeOptions, config.dead_code_restart) if restart else None,
        gumbel=options(GumbelOptions, config.gumbel_temperature),
    )


def _option_problems(config: Any, path: str) -> Iterator[Problem]:
    for field, known in KINDS.items():
        value = getattr(config, field)
        if value not in known:
            yield Problem(f"{path}.{field}", repr(value), " or ".join(map(repr, known)), "Fix it.")
    gumbel = config.forward_mode == "gumbel_softmax"
    for field in ("rotation_trick", "ema"):
        if gumbel and (config.HasField(field) and bool(getattr(config, field))):
            yield Problem(
                f"{path}.{field}",
                f"{field} with gumbel_softmax",
                "forward_mode ste",
                "gumbel_softmax has gradients of its own: remove one of the two.",
            )
    temperature = config.gumbel_temperature
    if temperature.start <= 0 or temperature.end <= 0:
        found = f"{temperature.start:g} to {temperature.end:g}"
        yield Problem(f"{path}.gumbel_temperature", found, "temperatures above 0", "Raise them.")
    if config.HasField("dead_code_restart") and config.dead_code_restart.interval == 0:
        yield Problem(
            f"{path}.dead_code_restart.interval", "0", "1 or more steps", "Unset it for none."
        )


def _loss_problems(model_config: Any, config: Any) -> Iterator[Problem]:
    """Losses and what they read must come together."""
    losses = {loss.WhichOneof("sid_loss") for loss in model_config.losses}
    needs = {
        "contrastive_loss": "contrastive_config",
        "collaborative_loss": "collaborative_feature_group",
        "diversity_loss": "diversity",
    }
    for loss, field in needs.items():
        there = config.HasField(field)
        if there == (loss in losses):
            continue
        path = f"model_config.sid_rqvae.{field}" if there else "model_config.losses"
        found = f"{field} without {loss}" if there else f"{loss} without sid_rqvae.{field}"
        yield Problem(path, found, "both or neither", "Add the other, or remove this.")
    if "diversity_loss" in losses and config.HasField("ema"):
        path, found = "model_config.sid_rqvae.ema", "ema with diversity_loss"
        remedy = "Running means move them, and the loss would do nothing: remove one of the two."
        yield Problem(path, found, "codebooks that gradients move", remedy)
    by_decoder = config.forward_mode == "gumbel_softmax"
    if "commitment_loss" not in losses and not (config.HasField("ema") or by_decoder):
        yield Problem(
            "model_config.losses",
            "no commitment_loss",
            "commitment_loss, or sid_rqvae.ema",
            "Without one of them the codebooks never move.",
        )


def _width_problems(
    config: Any, path: str, widths: Mapping[str, tuple[int, ...]]
) -> Iterator[Problem]:
    if config.HasField("contrastive_config"):
        pair = config.contrastive_config.pair_feature_group
        named = {pair, config.contrastive_config.pair_flag_feature_group}
        named.add(config.collaborative_feature_group)
        main = main_group(config, [name for name in widths if name not in named])
        if sum(widths[pair]) != sum(widths[main]):
            found = f"{sum(widths[pair])} numbers, and {sum(widths[main])} in {main}"
            expected = "the same width: one encoder reads both"
            yield Problem(
                f"{path}.contrastive_config.pair_feature_group", found, expected, "Change a group."
            )
    name = config.collaborative_feature_group
    if name and sum(widths[name]) != config.embed_dim:
        found = f"{sum(widths[name])} numbers"
        expected = f"{config.embed_dim} (embed_dim)"
        yield Problem(f"{path}.collaborative_feature_group", found, expected, "Change embed_dim.")
