"""What the two ops on entries of the window share."""

from tileproof.dsl import In, Values, dim, static

TOKENS = dim(0, 1 << 20, batch=True)
DIMS = {
    "M": TOKENS,
    "X": dim(1, 1 << 22),
    "PX": dim(16, 1 << 20, multiple=8),  # rows may be a slice of wider ones
}
CHANNELS = static(16, 1024, multiple=8)
ROTATED = static(2, 256, multiple=2)
TYPES = {"weight": ("f32", "bf16")}


def sources(act, most):
    """Projected tokens and where their entries go, "0".."most" or -1, which is nowhere."""
    return (
        In("x", "M D", act, strides="PX 1"),
        In("weight", "D", "weight"),
        In("cos", "X Q", "f32"),
        In("sin", "X Q", "f32"),
        In("position", "M", "i32", values=Values("0", "X-1")),
        In("slot", "M", "i32", values=Values("0", most, none=-1, distinct=True)),
    )
