"""What the tests of the gates share."""

from ..support import UNIT

EDGE = {"E": 130, "K": 7}

# Roundings by which a score may be off: exp and log1p err by two units each, log1p passes on at
# most the relative error of its argument, the root halves both and adds one.
SCORE = (2 + 2) / 2 + 1


def weight_bound(expected):
    """Bound on the error of weights [M, K].

    Scores as above in quotient and sum, K roundings of the sum, a quotient and a product.
    """
    return expected * 1.01 * (2 * SCORE + expected.shape[1] + 3) * UNIT
