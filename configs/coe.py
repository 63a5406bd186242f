r"""Chain-of-Experts: two passes through the experts of every layer, each with a router of its own.

  recursia train --config=coe:tiny --workdir=runs/coe_tiny                # minutes on 2 cores
  recursia train --config=coe:tiny ... --config.block.num_passes=1        # a mixture of experts

Wang et al. 2025, arXiv 2506.18945: a token's experts in the second pass read what those of the
first have made of it. Here a pass takes one expert of 16 and one that is always on, half as many as
one pass alone would. The stream keeps what it was and gains the change that the passes made; as
released it is replaced: `--config.block.kind=replacing_norm --config.block.writes=result`. The
published models have compressed keys and values, which no mixer here has; there are no presets of
their size.

Measured, tiny after 300 steps: 2.057 nats per byte of the bundled validation text.
Checked against: authors' code, 2 files.
"""

from ml_collections import ConfigDict

from recursia.configs import base

PRESETS = ("tiny",)


def get_config(preset: str) -> ConfigDict:
    config = base.get_config(preset, num_steps=300)
    experts = dict(num_experts=16, top_k=1, expert_dim=48, shared_dim=48)
    balance = dict(balance_over="sequence", balance_loss_weight=1e-3)
    config.model.block.feedforward = dict(kind="chain_moe", num_passes=2, **experts, **balance)
    return config.lock()
