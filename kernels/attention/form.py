"""Which form of decoding a batch is given: a block or a cluster of blocks for each token."""

from tileproof.kernels.row_stream import ceildiv

from ._cluster import STEP

SPREAD = 4  # blocks of a cluster
_HEADS = 64  # of a block
_LEAST = 512  # slots: below, the steps that fill the chain of blocks outweigh what they share


def clustered(tokens: int, heads: int, channels: int, slots: int, multiprocessors: int) -> int:
    """How many of the last of `tokens` `attention/paged_cluster` should take, the others
    `attention/paged`.

    Those of the last wave of blocks, one on each of so many `multiprocessors`, if that is so empty
    that a cluster for each of them fits in it, and if `slots`, the length of their lists, pays for
    it. None where the channels of an entry cannot be cut. Either way the bits are the same.
    """
    blocks = ceildiv(heads, _HEADS)
    if channels % (SPREAD * STEP) or slots < _LEAST or multiprocessors < blocks:
        return 0
    last = tokens % (multiprocessors // blocks)
    return last if last * blocks * SPREAD <= multiprocessors else 0
