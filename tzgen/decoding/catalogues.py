# SPDX-License-Identifier: Apache-2.0
"""Parts of a catalogue (a country, what is in stock) as masks over the nodes of one trie.

S sub-catalogues over N items. A node is alive in a sub-catalogue when an allowed item lies under
it; that is carried from the items up to the first level by segment sums, with no loop over nodes.
Built once and named, every row of a batch picks its own; or built for a request, in time and bytes
proportional to S times the nodes of the trie. The trie itself is not copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tzgen.decoding.trie import DENSE_BYTES, Trie


@dataclass(frozen=True)
class SubCatalogues:
    """Use `of`; pass to `beam_search` with `index(names)` when there are several."""

    names: tuple[str, ...]
    allowed: Tensor  # bool [S, N + 1] by place in the trie, False past the end
    counts: Tensor  # int64 [S, N + 1], allowed places before each place
    alive: tuple[Tensor, ...]  # bfloat16 {0, -inf} [S, n_l + C_l] a level
    bias: tuple[Tensor | None, ...]  # float32 {0, -inf} [S * (n_{l-1} + 1), V_l] a dense level

    @staticmethod
    def of(
        trie: Trie, allowed: Mapping[str, Tensor], *, dense_bytes: int = DENSE_BYTES
    ) -> SubCatalogues:
        """name -> bool [N], True for the items that may be returned; all False gives no results.

        dense_bytes: the most that the dense tables of one level may take, all names together;
        beyond it that level uses CSR.
        """
        if not allowed:
            raise ValueError("no sub-catalogue is given: name at least one")
        for name, mask in allowed.items():
            if mask.dtype != torch.bool or mask.shape != (trie.num_items,):
                raise ValueError(
                    f"sub-catalogue {name!r} is {mask.dtype} {tuple(mask.shape)}; it should be a "
                    f"bool mask over the trie's {trie.num_items} items (see `item_mask`)"
                )
        stacked = torch.stack(list(allowed.values())).to(trie.device)
        by_place = stacked.index_select(1, trie.items)
        counts = torch.nn.functional.pad(by_place.cumsum(1), (1, 0))
        ends = trie.leaf_ptr[:-1]
        alive, bias = [], []
        for level in reversed(trie.levels):
            under = counts.index_select(1, ends).diff(dim=1) > 0
            alive.append(additive(torch.nn.functional.pad(under, (0, level.branching))))
            dense = None
            entries = (level.num_parents + 1) * level.size
            if level.bias is not None and entries * 4 * len(allowed) <= dense_bytes:
                dense = torch.full((len(allowed), entries), -torch.inf, device=trie.device)
                keys = level.parents() * level.size + level.tokens[: level.num_nodes]
                dense[:, keys] = alive[-1][:, : level.num_nodes].to(torch.float32)
                dense = dense.view(-1, level.size)
            bias.append(dense)
            ends = ends.index_select(0, level.indptr[:-1])
        by_place = torch.nn.functional.pad(by_place, (0, 1))
        return SubCatalogues(
            tuple(allowed), by_place, counts, tuple(alive[::-1]), tuple(bias[::-1])
        )

    def index(self, names: Sequence[str]) -> Tensor:
        """Names of the rows of a batch -> int64 [B] for `beam_search`."""
        known = {name: place for place, name in enumerate(self.names)}
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ValueError(f"unknown sub-catalogues {unknown}; there are {list(self.names)}")
        return torch.tensor([known[name] for name in names], device=self.counts.device)


def additive(mask: Tensor) -> Tensor:
    """bool -> bfloat16, 0 where True and -inf where False."""
    zero = torch.zeros((), dtype=torch.bfloat16, device=mask.device)
    return torch.where(mask, zero, -torch.inf)


def item_mask(trie: Trie, *, allow: Tensor | None = None, deny: Tensor | None = None) -> Tensor:
    """Lists of items (int64, any order, repeats allowed) -> bool [N]: in `allow`, not in `deny`."""
    mask = torch.full((trie.num_items,), allow is None, device=trie.device)
    for name, items, value in (("allow", allow, True), ("deny", deny, False)):
        if items is None:
            continue
        if items.numel() and (int(items.min()) < 0 or int(items.max()) >= trie.num_items):
            raise ValueError(
                f"the {name} list has items from {int(items.min())} to {int(items.max())}; the "
                f"trie's items are 0 to {trie.num_items - 1}"
            )
        mask[items.to(trie.device)] = value
    return mask
