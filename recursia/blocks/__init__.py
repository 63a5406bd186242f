"""Residual arrangements of a mixer and a feed-forward, one file each; none knows it is shared.

A kind of block is a subclass of `recursia.blocks.block.Block`. A published block is a preset of an
arrangement, a mixer (`recursia.mixers`) and a feed-forward (`recursia.feedforward`):
`recursia.configs.blocks` has them by name.
"""

_LLAMA = "mixer 'grouped_query' and feedforward 'swiglu'"
FORMER = {
    "llama": f"'pre_norm' with {_LLAMA}",
    "ouro": f"'sandwich_norm' with {_LLAMA}",
    "huginn": f"'pre_post_norm' with {_LLAMA}",
    "universal": "'pre_norm' or 'post_norm' with mixer 'grouped_query' and feedforward 'relu'",
    "moe": "'pre_norm' with mixer 'grouped_query' and feedforward 'softmax_moe'",
    "moeut": "'peri_norm' with mixer 'switch_head' and feedforward 'sigma_moe'",
    "sut": "'pre_norm' or 'post_norm' with mixer 'momha' and feedforward 'mim_moe'",
}
