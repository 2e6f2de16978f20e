# SPDX-License-Identifier: Apache-2.0
"""Answering requests: what is kept of users between them."""
