"""Threads of matrix products, where edgekit has threads of its own.

numpy's BLAS spreads each product over all cores. Where several threads multiply at once, their
products wait for one another: with two threads on two cores a calibration took a quarter longer
(measured).
"""

from __future__ import annotations

import contextlib

from edgekit.lazy import require


def one_thread_a_product() -> contextlib.AbstractContextManager[object]:
    """Let each product be computed by the thread that asks for it, until the block ends.

    Holds for the whole process; only one block at a time may use it.
    """
    limits: contextlib.AbstractContextManager[object] = require("threadpoolctl").threadpool_limits(
        1, user_api="blas"
    )
    return limits
