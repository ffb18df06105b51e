"""What a bundle must hold for the network: every kernel it calls, and no others."""

import pytest
import torch

from tileproof.codegen.bundle import describe
from tileproof.dsl import get
from tileproof.model import official
from tileproof.model.cache import Chunk
from tileproof.model.checkpoint import official_config, random_state
from tileproof.model.deepseek_v4 import DeepseekV4, specializations
from tileproof.runtime.signature import Signature

from .rounded import Rounded

# No two sizes alike that the model could mix up.
DISTINCT = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "compress_ratios": [0, 4, 128],
    "num_hash_layers": 1,
    "q_lora_rank": 512,
    "moe_intermediate_size": 384,
    "o_lora_rank": 320,
    "num_attention_heads": 6,
    "n_routed_experts": 16,
    "index_n_heads": 8,
    "routed_scaling_factor": 2.5,
    "swiglu_limit": 7.0,
}

# Of routed experts, where many tokens take them.
STEPS = {"moe/dispatch_fp8", "gemm/fp4_experts", "moe/swiglu_fp8", "moe/combine"}


class Recorder:
    """Runs references and remembers which kernels could have served each call."""

    def __init__(self, needed):
        self.needed, self.called, self.rounded = needed, set(), Rounded()

    def __call__(self, op, *tensors, **params):
        signature = Signature(describe(get(op)))
        wanted = {
            **signature.sizes(tensors, params),
            **signature.types(tensors, params),
            **signature.parameters(params),
        }
        fitting = {
            s.symbol
            for s in self.needed
            if s.op.stem == op and wanted.items() <= {**s.dims, **s.types, **s.params}.items()
        }
        assert len(fitting) == 1, (op, wanted, fitting)
        self.called |= fitting
        return self.rounded(op, *tensors, **params)


@pytest.mark.parametrize("tokens", [5, 40])
def test_the_kernels_of_a_config_are_those_the_network_calls(tokens, monkeypatch):
    monkeypatch.setattr(official, "clustered", lambda *load: 2)
    config = official_config(264, compress_rate_hca=16, **DISTINCT)
    run = Recorder(specializations(config))
    model = DeepseekV4(config, random_state(config, 1), run)
    held, chunks = model.cache(1, 256, scratch=64), [Chunk(0, 0, tokens)]
    ids = torch.arange(tokens)
    streams = model.forward(chunks, ids, held).streams
    model.predict(chunks, streams, ids, held)
    spare = {s.op.name for s in run.needed if s.symbol not in run.called}
    if tokens > 32:  # for few tokens, mHC is one kernel, and routed experts are
        assert spare == {"mhc/pre", "moe/mega"}
    else:
        assert spare >= {"mhc/sinkhorn", "mhc/collapse", *STEPS}
