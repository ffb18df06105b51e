"""What the gates share: domains, size sets, and the score of a logit."""

from tileproof.dsl import dim, static

from .reference import GUARD, LINEAR

TOKENS = dim(0, 1 << 20, batch=True)
EXPERTS = static(1, 1024)
CHOSEN = static(1, 32)
PARAMS = {"scale": 1.5}
SHAPES = {
    "tiny": {"M": 7, "E": 8, "K": 2},
    "flash": {"M": 4096, "E": 256, "K": 6},
    "pro": {"M": 4096, "E": 384, "K": 6, "scale": 2.5},
    "edge": {"M": [0, 1, 3, 4, 5, 127, 129, 4099], "E": 130, "K": 7},
}


def model_sizes(config):
    """The routers of a HF config."""
    yield {
        "E": config["n_routed_experts"],
        "K": config["num_experts_per_tok"],
        "scale": config["routed_scaling_factor"],
    }


def score(T, x):
    """sqrt(softplus(x)) in float32; softplus is x itself where exp(x) would be far above 1."""
    return T.sqrt(T.if_then_else(x > LINEAR, x, T.log1p(T.exp(x))))


def weigh(T, K, scale):
    """Macro for one thread: weights of the experts ``expert(k)`` of token m.

    The experts are read where they are used, so that the contract of their tensor is seen to hold
    for the logits they choose; the second read hits the cache.
    """

    @T.macro
    def device(logits, m, expert, weight):
        # weight_k = s_k / (sum_k s_k + 1e-20) scale, 0 where there is no expert
        chosen = T.alloc_local((K,), "float32")
        total = T.alloc_local((1,), "float32")
        for k in T.unroll(K):
            chosen[k] = T.if_then_else(expert(k) >= 0, score(T, logits[m, expert(k)]), 0)
        total[0] = 0
        for k in T.unroll(K):
            total[0] += chosen[k]
        total[0] += GUARD
        for k in T.unroll(K):
            weight[m, k] = chosen[k] / total[0] * scale

    return device
