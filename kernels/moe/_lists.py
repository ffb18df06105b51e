"""The lists by which rows of tokens go to experts and come back (spec §5).

The M K pairs (token, slot) lie sorted by expert, within an expert in their own order, each expert's
first one at the first of a tile of R rows. There are Q tiles:

    place [M, K]    row q R + r of each pair, -1 of a pair without an expert
    expert [Q]      whose rows a tile has, -1 behind the last tile
    source [Q, R]   the pair m K + k of each row, -1 of a row that fills up a tile

`moe/permute` makes the first two, `moe/source` the third of the first.
"""

from tileproof.dsl import check, dim, static

TILE = 64
PAIRS = dim(0, 1 << 20)  # tokens; no batch dim, as a place depends on all of them
TILES = dim(0, 1 << 20)
ROWS = static(16, 128, multiple=16)  # of a tile


def tiles(M: int, K: int, E: int, R: int = TILE) -> int:
    """The most tiles that M tokens with K of E experts each can take."""
    check(M >= 0 and K > 0 and E > 0 and R > 0, "tokens, choices, experts, rows of a tile",
          got=(M, K, E, R), expected="no negative number, and one token's at least 1")  # fmt: skip
    pairs = M * K
    begun = min(pairs, E)
    return (pairs - begun) // R + begun
