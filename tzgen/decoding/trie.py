# SPDX-License-Identifier: Apache-2.0
"""The legal codes of a catalogue as a prefix tree in flat arrays.

N items of L codes; level l has V_l codes ("tokens") and n_l nodes, a node being a prefix of l + 1
codes that some item has; C_l is the largest number of children a parent has there. Nodes of a level
are numbered in lexicographic order of their prefixes. So the children of node p are the nodes
indptr[p] .. indptr[p + 1] - 1 of the next level, and no table of next states is needed: an edge and
the node it leads to have one number. "No node" is the number n_l, one past the last; it has no
children, so that a dead beam needs no special case.

Next to these compressed rows (CSR), a level where many of the V_l codes follow a prefix keeps a
dense table of rows {0, -inf} [n_{l-1} + 1, V_l], which is added to logits at the price of reading
it. Leaves carry a range of items: `items` are rows of the codes that the trie was built from.

Dense first levels and CSR below are STATIC's layout (youtube/static-constraint-decoding); here
levels have vocabularies of their own, offsets are int64 and next states follow from the numbering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tzgen.decoding.order import sort_codes

DENSE_BYTES = 1 << 27
DENSE_SHARE = 2  # dense pays from about V / 2 children: measured with tools/bench_decode.py


@dataclass(frozen=True)
class Level:
    """One level's edges. `tokens` is padded by C_l and `indptr` by one, see the module."""

    size: int  # V_l
    num_parents: int  # n_{l-1}; 1 at level 0
    num_nodes: int  # n_l
    branching: int  # C_l
    tokens: Tensor  # int32 (int64 where V_l >= 2^31) [n_l + C_l]
    indptr: Tensor  # int64 [n_{l-1} + 2]
    tail: Tensor  # float32 [2 * C_l]: C_l times 0, then -inf; a window of it masks what is no child
    bias: Tensor | None  # float32 [n_{l-1} + 1, V_l], 0 where the code is legal, else -inf
    ranks: Tensor | None  # [n_{l-1} + 1, V_l] beside `bias`: which child of its parent a code is

    def parents(self) -> Tensor:
        """The parent of every node, int64 [n_l]."""
        parents = torch.arange(self.num_parents, device=self.indptr.device)
        counts = self.indptr[:-1].diff()
        return torch.repeat_interleave(parents, counts, output_size=self.num_nodes)

    def legal_child(self, node: Tensor, token: Tensor) -> Tensor:
        """`child` at a dense level, where the token is known to be legal."""
        assert self.ranks is not None, "only a dense level has ranks"
        entry = (node * self.size + token).flatten()
        first = self.indptr.index_select(0, node.flatten())
        return (first + self.ranks.view(-1).index_select(0, entry)).view(node.shape)

    def child(self, node: Tensor, token: Tensor) -> Tensor:
        """The node reached from `node` by `token`, n_l where there is none; int64, same shape."""
        if self.bias is not None:
            there = self.bias.view(-1)[node * self.size + token] == 0
            return torch.where(there, self.legal_child(node, token), self.num_nodes)
        low, stop = self.indptr[node], self.indptr[node + 1]
        high = stop
        for _ in range(self.branching.bit_length()):
            middle = (low + high) >> 1
            right = (self.tokens[middle] < token) & (low < high)
            low, high = torch.where(right, middle + 1, low), torch.where(right, high, middle)
        there = (low < stop) & (self.tokens[low] == token)
        return torch.where(there, low, self.num_nodes)


@dataclass(frozen=True)
class Trie:
    """See the module. Build with `from_codes` or `from_arrays`; search with `beam_search`."""

    levels: tuple[Level, ...]
    leaf_ptr: Tensor  # int64 [n_{L-1} + 2]; leaf -> its range of places
    items: Tensor  # int64 [N]; place -> item (row of the codes), leaf by leaf
    places: Tensor  # int64 [N]; item -> place
    leaf_items: int  # the most items that share a leaf

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(level.size for level in self.levels)

    @property
    def num_items(self) -> int:
        return self.items.size(0)

    @property
    def num_leaves(self) -> int:
        return self.levels[-1].num_nodes

    @property
    def device(self) -> torch.device:
        return self.items.device

    @staticmethod
    def from_codes(
        codes: Tensor,
        sizes: Sequence[int],
        *,
        shared_leaves: bool = False,
        dense_bytes: int = DENSE_BYTES,
    ) -> Trie:
        """Build from integer codes [N, L]; item i is row i.

        sizes: V_l of every level. shared_leaves: several items may have the same codes (collision
        policy `none`); otherwise duplicates are an error. dense_bytes: the most that the dense
        table of one level may take; 0 keeps CSR alone.
        """
        codes = check_codes(codes, sizes)
        ordered = sort_codes(codes, sizes)
        arrays = {"sizes": torch.tensor(list(sizes)), "items": ordered.order}
        above = torch.zeros(1, dtype=torch.int64, device=codes.device)
        for place, (starts, tokens) in enumerate(ordered.levels()):
            wide = sizes[place] > 1 << 31
            arrays[f"tokens_{place}"] = tokens if wide else tokens.to(torch.int32)
            arrays[f"indptr_{place}"] = closed(torch.searchsorted(starts, above), starts.size(0))
            above = starts
        arrays["leaf_ptr"] = closed(above, codes.size(0))
        if not shared_leaves and above.size(0) < codes.size(0):
            raise ValueError(duplicates(codes, ordered.order, arrays["leaf_ptr"]))
        return Trie.from_arrays(arrays, dense_bytes=dense_bytes)

    @staticmethod
    def from_arrays(arrays: Mapping[str, Tensor], *, dense_bytes: int = DENSE_BYTES) -> Trie:
        """Build from what `to_arrays` gave; what does not fit together is a ValueError."""
        sizes = [int(size) for size in named(arrays, "sizes").tolist()]
        if not sizes:
            raise ValueError("trie array 'sizes' is empty: a trie has at least one level")
        levels, num_parents = [], 1
        for place, size in enumerate(sizes):
            tokens, indptr = named(arrays, f"tokens_{place}"), named(arrays, f"indptr_{place}")
            check_ranges(f"indptr_{place}", indptr, num_parents, tokens.size(0))
            if int(tokens.min()) < 0 or int(tokens.max()) >= size:
                raise ValueError(f"trie array 'tokens_{place}' has codes outside [0, {size})")
            levels.append(make_level(size, tokens, indptr, dense_bytes))
            num_parents = tokens.size(0)
        items, leaf_ptr = named(arrays, "items"), named(arrays, "leaf_ptr")
        check_ranges("leaf_ptr", leaf_ptr, num_parents, items.size(0))
        places = torch.full_like(items, -1)
        if int(items.min()) >= 0 and int(items.max()) < items.size(0):
            places[items] = torch.arange(items.size(0), device=items.device)
        if int(places.min()) < 0:
            raise ValueError(f"trie array 'items' is not a permutation of 0..{items.size(0) - 1}")
        most = int(leaf_ptr.diff().max())
        return Trie(tuple(levels), padded(leaf_ptr), items, places, most)

    def to_arrays(self) -> dict[str, Tensor]:
        """Plain arrays without padding or derived tables, to be stored beside the codes."""
        arrays = {"sizes": torch.tensor(self.sizes), "items": self.items}
        for place, level in enumerate(self.levels):
            arrays[f"tokens_{place}"] = level.tokens[: level.num_nodes].clone()
            arrays[f"indptr_{place}"] = level.indptr[:-1].clone()
        arrays["leaf_ptr"] = self.leaf_ptr[:-1].clone()
        return arrays

    def to(self, device: torch.device | str) -> Trie:
        """The same trie on another device."""

        def moved(level: Level) -> Level:
            return replace(
                level,
                tokens=level.tokens.to(device),
                indptr=level.indptr.to(device),
                tail=level.tail.to(device),
                bias=None if level.bias is None else level.bias.to(device),
                ranks=None if level.ranks is None else level.ranks.to(device),
            )

        levels = tuple(moved(level) for level in self.levels)
        ends = (self.leaf_ptr.to(device), self.items.to(device), self.places.to(device))
        return Trie(levels, *ends, self.leaf_items)

    def find(self, codes: Tensor) -> Tensor:
        """The leaf of each row of int64 codes [..., L], -1 where no item has these codes."""
        node = torch.zeros(codes.shape[:-1], dtype=torch.int64, device=self.device)
        for place, level in enumerate(self.levels):
            node = level.child(node, codes[..., place])
        return torch.where(node < self.num_leaves, node, -1)

    def codes_of(self, leaves: Tensor) -> Tensor:
        """int64 [...] leaves -> int64 [..., L] codes; -1 gives -1 everywhere."""
        there = leaves >= 0
        node, columns = leaves.clamp_min(0), []
        for level in reversed(self.levels):
            token = level.tokens[node].to(torch.int64)
            columns.append(torch.where(there, token, -1))
            ends = level.indptr[: level.num_parents + 1]
            node = torch.searchsorted(ends, node, right=True) - 1
        return torch.stack(columns[::-1], -1)

    def num_bytes(self) -> int:
        """Memory of all tables, the derived ones included."""
        tensors = [self.leaf_ptr, self.items, self.places]
        for level in self.levels:
            tensors += [level.tokens, level.indptr, level.tail]
            tensors += [part for part in (level.bias, level.ranks) if part is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def make_level(size: int, tokens: Tensor, indptr: Tensor, dense_bytes: int) -> Level:
    """Pad, and add the dense table where it pays and fits."""
    num_parents, num_nodes = indptr.size(0) - 1, tokens.size(0)
    branching = int(indptr.diff().max())
    room = torch.zeros(branching, dtype=tokens.dtype, device=tokens.device)
    level = Level(
        size,
        num_parents,
        num_nodes,
        branching,
        torch.cat([tokens, room]),
        padded(indptr),
        torch.zeros(2 * branching, device=tokens.device),
        None,
        None,
    )
    level.tail[branching:] = -torch.inf
    whole = torch.uint8 if branching <= 256 else torch.int32
    entries = (num_parents + 1) * size
    if branching * DENSE_SHARE < size or entries * (4 + whole.itemsize) > dense_bytes:
        return level
    parents = level.parents()
    keys = parents * size + tokens
    bias = torch.full((entries,), -torch.inf, device=tokens.device)
    bias[keys] = 0
    ranks = torch.zeros(entries, dtype=whole, device=tokens.device)
    ranks[keys] = (torch.arange(num_nodes, device=tokens.device) - indptr[parents]).to(whole)
    return replace(level, bias=bias.view(-1, size), ranks=ranks.view(-1, size))


def closed(starts: Tensor, total: int) -> Tensor:
    """int64 [n] starts of ranges -> [n + 1], the end of the last one appended."""
    return torch.cat([starts, starts.new_tensor([total])])


def padded(indptr: Tensor) -> Tensor:
    """One more entry: the range of "no node" is empty."""
    return torch.cat([indptr, indptr[-1:]])


def check_codes(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """int64 [N, L], or a ValueError that names the item, level and code."""
    if codes.dim() != 2 or codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(
            f"codes have shape {tuple(codes.shape)} and type {codes.dtype}; a trie is built from "
            "integers [items, levels]"
        )
    if codes.size(1) != len(sizes) or not sizes:
        raise ValueError(
            f"codes have {codes.size(1)} levels but sizes names {len(sizes)}: give the number of "
            "codes of every level"
        )
    if codes.size(0) == 0:
        raise ValueError("the catalogue is empty: a trie needs at least one item")
    codes = codes.to(torch.int64)
    for level, size in enumerate(sizes):
        column = codes[:, level]
        wrong = (column < 0) | (column >= size)
        if bool(wrong.any()):
            item = int(wrong.nonzero()[0])
            raise ValueError(
                f"item {item} has code {int(column[item])} at level {level}, which has codes 0 to "
                f"{size - 1}; {int(wrong.sum())} items are outside: were the codes made with "
                "another codebook, or does this level hold a larger collision suffix?"
            )
    return codes


def duplicates(codes: Tensor, order: Tensor, leaf_ptr: Tensor) -> str:
    """What to say about items that have the same codes."""
    counts = leaf_ptr.diff()
    worst = int(counts.argmax())
    first = int(leaf_ptr[worst])
    some = order[first : first + min(3, int(counts[worst]))].tolist()
    return (
        f"{codes.size(0)} items have only {counts.size(0)} different codes; the largest group, "
        f"{int(counts[worst])} items such as rows {some}, has {codes[some[0]].tolist()}. Resolve "
        "collisions first (a suffix, for instance), or pass shared_leaves=True to let items share "
        "a leaf"
    )


def named(arrays: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in arrays:
        raise ValueError(f"trie array {name!r} is missing; there are {sorted(arrays)}")
    array = arrays[name]
    if array.dim() != 1 or array.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"trie array {name!r} has shape {tuple(array.shape)} and type {array.dtype}; it should "
            "be one-dimensional and int64 (tokens: int32)"
        )
    return array


def check_ranges(name: str, indptr: Tensor, num_ranges: int, total: int) -> None:
    """Non-empty ranges, one a parent, that cover 0..total."""
    fits = indptr.size(0) == num_ranges + 1 and total > 0
    if not fits or int(indptr[0]) != 0 or int(indptr[-1]) != total or int(indptr.diff().min()) < 1:
        raise ValueError(
            f"trie array {name!r} with {indptr.size(0)} entries does not cut {total} entries into "
            f"{num_ranges} ranges: the arrays belong to different tries, or are damaged"
        )
