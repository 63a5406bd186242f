"""Residual blocks, one published block a file; none knows that it is shared.

A block module offers

    Config                        a frozen dataclass with `embed_dim` and `norm_eps`
    SLOTS                         names of its slots, the parts of a block that can be shared apart
    FLOAT32                       slots whose weights stay float32 whatever the compute dtype
    SOURCE                        (slot, name) of weights that only make keys and values
    specs(config, num_steps)      -> one tree of specs per slot; `num_steps` is the effective depth,
                                  on which initial scales may depend
    final_norm(config)            -> spec of the norm before the head, or None
    apply(params, x, context, config, source, memory) -> (x, keys and values made, report)
    losses(config, reports)       -> terms of the training loss in nats per token, and metrics
    batch_losses(config)          names of weights in force of losses that are no sums over tokens,
                                  for a block that has such losses
    forward_flops(config, keys, is_reading), recomputed_flops(config, keys), cache_entries(config)
                                  for accounting

A report is a tree of arrays by slot, each a sum over the tokens of a row [B ...] or over all of
them [...]; reports of all uses of one entry of the slot's bank are added. `losses` is given them
with the entries in front, those of prelude and coda included.
"""
