# SPDX-License-Identifier: Apache-2.0
"""Codes to items: the trie of legal codes, beam search over it, post-processing; torch alone."""

from tzgen.decoding.beam import beam_search as beam_search
from tzgen.decoding.beam import free_beam_search as free_beam_search
from tzgen.decoding.catalogues import SubCatalogues as SubCatalogues
from tzgen.decoding.catalogues import item_mask as item_mask
from tzgen.decoding.options import BeamOptions as BeamOptions
from tzgen.decoding.options import BeamResult as BeamResult
from tzgen.decoding.options import BeamState as BeamState
from tzgen.decoding.post import ItemList as ItemList
from tzgen.decoding.post import cosine as cosine
from tzgen.decoding.post import list_items as list_items
from tzgen.decoding.post import prefix_overlap as prefix_overlap
from tzgen.decoding.post import rerank_mmr as rerank_mmr
from tzgen.decoding.trie import Trie as Trie
