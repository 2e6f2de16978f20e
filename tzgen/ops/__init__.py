# SPDX-License-Identifier: Apache-2.0
"""Operators of torch and triton alone. Importing this package registers the `tzgen::` ops."""

from tzgen.ops import dropout as dropout
from tzgen.ops import embedding_lookup as embedding_lookup
from tzgen.ops import hstu_attention as hstu_attention
from tzgen.ops import hstu_attention_cached as hstu_attention_cached
from tzgen.ops import jagged_dense_bmm as jagged_dense_bmm
from tzgen.ops import stu_linear as stu_linear
