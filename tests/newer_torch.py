"""Marks for tests of what torch 2.0.1, which PopTorch needs, cannot do: one reason each."""

from __future__ import annotations

import pytest
import torch

from weights import pickled

reads_pickles = pytest.mark.skipif(
    not pickled.is_safe(torch.__version__), reason=f"torch {torch.__version__} cannot read pickles safely"
)
exports = pytest.mark.skipif(not hasattr(torch, "export"), reason=f"torch {torch.__version__} has no torch.export")
fuses_attention = pytest.mark.skipif(
    not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"),
    reason=f"torch {torch.__version__} has no fused attention on CPUs",
)
