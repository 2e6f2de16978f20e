# SPDX-License-Identifier: Apache-2.0
"""tzgen: generative recommendation configured by protobuf text files."""

__version__ = "0.1.0"
