# SPDX-License-Identifier: Apache-2.0
"""Items to semantic IDs: unique codes, a versioned table of them, a report on how good they are."""
