"""Triton paths of the ops, for GPUs. Imported only where triton is; they run on a CPU under its interpreter, for tests.

Written for triton 3.6 to 3.9. The interpreter computes bfloat16 wrongly and takes no loop bounds from tensors, so every kernel
widens what it loads (`WIDE`), and loops run over constants. Products are made in the loaded type otherwise, added in float32.
"""

from __future__ import annotations

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET", "") == "1"
"""Whether kernels run in the interpreter, which needs its operands in float32."""
