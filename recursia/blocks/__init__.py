"""Residual blocks, one published block a file; none knows that it is shared.

A block module offers

    Config                        a frozen dataclass with `embed_dim` and `norm_eps`
    SLOTS                         names of its slots, the parts of a block that can be shared apart
    specs(config)                 -> one tree of specs per slot
    apply(params, x, context, config, source) -> (x, the keys and values made)
    forward_flops(config, keys, is_reading), recomputed_flops(config, keys), cache_entries(config)
                                  for accounting
"""
