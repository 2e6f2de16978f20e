# SPDX-License-Identifier: Apache-2.0
"""Known noise is dropped, everything else is heard, and all is as before afterwards."""

from __future__ import annotations

import logging
import warnings

import pytest

from tzgen.train.quiet import MESSAGES, quiet


@pytest.mark.parametrize("name", MESSAGES)
def test_only_the_known_message_is_dropped(name: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(name)
    with quiet():
        logger.warning("%s and so on", MESSAGES[name])
        logger.warning("something else")
    logger.warning(MESSAGES[name])
    assert caplog.messages == ["something else", MESSAGES[name]]


def test_warnings_come_through_unless_known() -> None:
    known = "`torch.distributed.all_gather_into_tensor` is deprecated. Please use another"
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn(known, FutureWarning, stacklevel=1)
            warnings.warn("the disk is full", UserWarning, stacklevel=1)
        warnings.warn(known, FutureWarning, stacklevel=1)
    assert [str(w.message) for w in heard] == ["the disk is full", known]


def test_torchrec_is_quiet() -> None:
    """The message is still worded so: otherwise the filter is dead."""
    import torch.fx._symbolic_trace as trace

    logger, heard = logging.getLogger("torch.fx._symbolic_trace"), []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign, assignment]
    logger.addHandler(handler)
    try:
        trace.is_fx_tracing_warning.cache_clear()
        with quiet():
            trace.is_fx_tracing()
        assert heard == []
        trace.is_fx_tracing_warning.cache_clear()
        trace.is_fx_tracing()
        assert len(heard) == 1
    finally:
        logger.removeHandler(handler)
