"""Published blocks: each an arrangement of norms, a mixer and a feed-forward.

Each function takes widths under the names of their fields and returns `model.block`. The other
fields have the values of the published block; change them with `update` or on the command line.
"""

from typing import Any

Fields = dict[str, Any]


def llama(embed_dim: int, mlp_dim: int, norm_eps: float = 1e-5, **heads: Any) -> Fields:
    """Llama (Touvron et al. 2023, arXiv 2302.13971); `heads` are fields of its attention."""
    return dict(
        kind="pre_norm",
        embed_dim=embed_dim,
        mixer=dict(kind="grouped_query", **heads),
        feedforward=dict(kind="swiglu", mlp_dim=mlp_dim),
        norm_eps=norm_eps,
    )


def ouro(**widths: Any) -> Fields:
    """Ouro (Zhu et al. 2025, arXiv 2510.25741): attention and feed-forward are Llama's."""
    block = llama(**{"rope_base": 1_000_000.0, "norm_eps": 1e-6, **widths})
    return {**block, "kind": "sandwich_norm"}


def neox(embed_dim: int, mlp_dim: int, **heads: Any) -> Fields:
    """GPT-NeoX (Black et al. 2022, arXiv 2204.06745), in Pythia: a quarter of a head is rotary."""
    biased = dict(rope_fraction=0.25, has_bias=True, has_value_bias=True)
    return dict(
        kind="parallel_norm",
        embed_dim=embed_dim,
        mixer=dict(kind="grouped_query", **{**biased, **heads}),
        feedforward=dict(kind="gelu", mlp_dim=mlp_dim),
        norm="layer",
    )


def huginn(embed_dim: int, mlp_dim: int, num_heads: int, head_dim: int) -> Fields:
    """Huginn (Geiping et al. 2025, arXiv 2502.05171), with smaller initial output projections.

    Their scale is divided by the root of twice the effective depth, after Takase et al. 2023 (arXiv
    2312.16903); so is that of the feed-forward's linear branch, as in the released code.
    """
    init = dict(rule="small", std=1.0, by_depth=True)
    mixer = dict(
        kind="grouped_query",
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        rope_base=50_000.0,
        rope_layout="interleaved",
        has_bias=True,
        init=init,
    )
    return dict(
        kind="pre_post_norm",
        embed_dim=embed_dim,
        mixer=mixer,
        feedforward=dict(kind="swiglu", mlp_dim=mlp_dim, init=init),
        norm_eps=1e-6,
    )


def universal(
    embed_dim: int, mlp_dim: int, num_heads: int, head_dim: int, num_kv_heads: int | None = None
) -> Fields:
    """Universal Transformer (Dehghani et al. 2018, arXiv 1807.03819), pre-norm as released.

    Attention is not rotary. The paper's form is kind "post_norm" with `init.by_depth` False, for
    its residual stream is normalised after every branch.
    """
    init = dict(rule="fan_in", std=1.0, by_depth=True)
    mixer = dict(
        kind="grouped_query",
        num_heads=num_heads,
        num_kv_heads=num_kv_heads or num_heads,
        head_dim=head_dim,
        rope_base=None,
        init=init,
    )
    return dict(
        kind="pre_norm",
        embed_dim=embed_dim,
        mixer=mixer,
        feedforward=dict(kind="relu", mlp_dim=mlp_dim, init=init),
        norm="layer",
        norm_eps=1e-6,
    )


def moeut(embed_dim: int, num_heads: int, head_dim: int, **experts: Any) -> Fields:
    """MoEUT (Csordás et al. 2024, arXiv 2405.16039); `experts` are fields of either layer."""
    inner = ("num_attention_experts", "attention_top_k", "rope_fraction", "rope_base")
    attention, mlp = _split(experts, (*inner, "attention_entropy_weight"))
    return dict(
        kind="peri_norm",
        embed_dim=embed_dim,
        mixer=dict(kind="switch_head", num_heads=num_heads, head_dim=head_dim, **attention),
        feedforward=dict(kind="sigma_moe", **mlp),
        norm="layer",
    )


def sut(embed_dim: int, num_heads: int, head_dim: int, mim_weight: float, **experts: Any) -> Fields:
    """Sparse Universal Transformer (Tan et al. 2023, arXiv 2310.07096), one weight of both MIMs."""
    inner = ("num_attention_experts", "attention_top_k", "num_distances", "attention_mim_sign")
    attention, mlp = _split(experts, inner)
    attention |= dict(num_heads=num_heads, head_dim=head_dim, attention_mim_weight=mim_weight)
    return dict(
        kind="post_norm",
        embed_dim=embed_dim,
        mixer=dict(kind="momha", **attention),
        feedforward=dict(kind="mim_moe", mim_weight=mim_weight, **mlp),
        norm="layer",
    )


def widenet(
    embed_dim: int, num_heads: int, head_dim: int, init_std: float = 0.02, **experts: Any
) -> Fields:
    """WideNet (Xue et al. 2021, arXiv 2107.11817) with causal rotary attention and no biases.

    The initial scale of output projections is divided by the root of twice the effective depth.
    """
    init = dict(std=init_std, by_depth=True)
    heads = dict(num_heads=num_heads, num_kv_heads=num_heads, head_dim=head_dim)
    return dict(
        kind="pre_norm",
        embed_dim=embed_dim,
        mixer=dict(kind="grouped_query", init=init, **heads),
        feedforward=dict(kind="softmax_moe", init=init, **experts),
        norm="layer",
    )


def _split(fields: Fields, first: tuple[str, ...]) -> tuple[Fields, Fields]:
    """Returns the fields with these names, and the others."""
    inside = {name: value for name, value in fields.items() if name in first}
    return inside, {name: value for name, value in fields.items() if name not in first}
