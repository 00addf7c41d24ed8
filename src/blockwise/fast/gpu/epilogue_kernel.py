"""The Triton kernel of `epilogue`; to be imported only where Triton is installed."""

import triton
import triton.language as tl


@triton.jit
def epilogue(
    output,
    bias,
    residual,
    count,
    channels,
    low,
    high,
    has_bias: tl.constexpr,
    has_residual: tl.constexpr,
    clips: tl.constexpr,
    block: tl.constexpr,
):
    """Overwrite `output` with clip(output + bias + residual); a NaN stays one."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    value = tl.load(output + at, mask=inside).to(tl.float32)
    if has_bias:
        value += tl.load(bias + at % channels, mask=inside).to(tl.float32)
    if has_residual:
        value += tl.load(residual + at, mask=inside).to(tl.float32)
    if clips:
        value = tl.maximum(value, low, propagate_nan=tl.PropagateNan.ALL)
        value = tl.minimum(value, high, propagate_nan=tl.PropagateNan.ALL)
    tl.store(output + at, value, mask=inside)
