"""bfloat16 where the processor computes faster in it: convolutions and products of matrices are rounded, weights stay float32.

With AVX-512 BF16 (two cores of an AMD EPYC, torch 2.14, 2026-11) a training of `residual` sees 1,770 instead of 1,030 images/s,
of `digits-residual` 2,880 instead of 2,050. EfficientNet-Lite0 gains nothing from it.
"""

import torch

INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # without them torch computes in bfloat16 too, and slowly


def has_bfloat16() -> bool:
    """Whether this processor has instructions for it."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(instructions, False) for instructions in INSTRUCTIONS)


def rounded(enabled: bool) -> torch.autocast:
    """Where forward passes and optimiser steps compute in bfloat16, if enabled."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)
