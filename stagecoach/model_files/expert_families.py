"""The served families whose layers have experts, of which each token uses some.

An entry each, as in `families`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from stagecoach.model_files.family import (
    ExpertKeys,
    ExpertLayout,
    Family,
    Keys,
    Rope,
    Sizes,
    WindowedLayers,
    Windows,
)

_LOCALLY = MappingProxyType({"num_experts": "num_local_experts"})
_NOT_LOCALLY = MappingProxyType({"num_local_experts": "num_experts"})
_ROUTED = MappingProxyType({"num_local_experts": "n_routed_experts"})
"""Other names of the number of experts: transformers saves a Qwen 3 with one of its own."""

_QWEN = ExpertLayout()
_OLMO = ExpertLayout(keys=ExpertKeys(width="intermediate_size"))
_DEEPSEEK = ExpertLayout(
    keys=ExpertKeys(num_experts="n_routed_experts", num_shared="n_shared_experts")
)
_LOCAL = ExpertKeys(num_experts="num_local_experts", width="intermediate_size")
_MIXTRAL = ExpertLayout(
    gate_up=("block_sparse_moe.experts.{}.w1.weight", "block_sparse_moe.experts.{}.w3.weight"),
    down="block_sparse_moe.experts.{}.w2.weight",
    others=MappingProxyType(
        {
            "mlp.gate.weight": "block_sparse_moe.gate.weight",
            "mlp.e_score_correction_bias": "block_sparse_moe.e_score_correction_bias",
        }
    ),
    keys=_LOCAL,
)
_GRANITE = ExpertLayout(
    gate_up=("block_sparse_moe.input_linear.weight",),
    down="block_sparse_moe.output_linear.weight",
    others=MappingProxyType(
        {"block_sparse_moe.router.weight": "block_sparse_moe.router.layer.weight"}
    ),
    keys=_LOCAL,
)


def _keys(**absent: object) -> MappingProxyType[str, object]:
    return MappingProxyType({"hidden_act": "silu"} | absent)


_GROUPED_ROUTER = _keys(
    moe_intermediate_size=1408,
    n_group=1,
    n_routed_experts=None,
    routed_scaling_factor=1.0,
    topk_group=1,
)
"""What routers read that choose groups of experts first, as DeepSeek's."""

_LATENT: Mapping[str, object] = MappingProxyType(
    {
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }
)
"""Sizes of latent attention, as most families have them."""

_GRANITE_KEYS: Keys = _keys(
    attention_bias=False,
    attention_multiplier=1.0,
    embedding_multiplier=1.0,
    logits_scaling=1.0,
    num_experts_per_tok=2,
    num_local_experts=8,
    residual_multiplier=1.0,
    rms_norm_eps=1e-6,
)

EXPERT_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "afmoe": Family(
            module="afmoe",
            prefix="Afmoe",
            sizes=Sizes(32, 2048, 200192, 16, None, 128, 6144, 16384, False, None),
            reads=_keys(
                attention_bias=False,
                moe_intermediate_size=1408,
                mup_enabled=False,
                num_dense_layers=1,
                num_experts=64,
                num_experts_per_tok=6,
                num_shared_experts=2,
                rms_norm_eps=1e-5,
                route_scale=1.0,
            ),
            gates_attention=True,
            embedding_scaled_by_width="mup_enabled",
            windows=Windows(
                WindowedLayers.PATTERN,
                1024,
                every=4,
                pattern_key="global_attn_every_n_layers",
                full_layers_ask=True,
            ),
            experts=ExpertLayout(keys=ExpertKeys(num_shared="num_shared_experts")),
        ),
        "aria_text": Family(
            module="aria",
            prefix="AriaText",
            sizes=Sizes(32, 4096, 32000, 32, None, None, 4096, 2048, False, 2),
            reads=_keys(
                attention_bias=False,
                mlp_bias=False,
                moe_num_experts=8,
                moe_num_shared_experts=2,
                moe_topk=2,
                rms_norm_eps=1e-6,
            ),
            experts=ExpertLayout(
                gate_up=("mlp.experts.fc1.weight",),
                down="mlp.experts.fc2.weight",
                are_transposed=True,
                keys=ExpertKeys(
                    num_experts="moe_num_experts",
                    num_chosen="moe_topk",
                    width="intermediate_size",
                    num_shared="moe_num_shared_experts",
                ),
            ),
        ),
        "deepseek_v2": Family(
            module="deepseek_v2",
            prefix="DeepseekV2",
            sizes=Sizes(32, 4096, 102400, 32, None, None, 11008, 2048, False, 2),
            reads=_keys(
                **_LATENT,
                attention_bias=False,
                first_k_dense_replace=0,
                mlp_bias=False,
                moe_intermediate_size=1407,
                n_group=None,
                n_routed_experts=64,
                n_shared_experts=2,
                num_experts_per_tok=None,
                rms_norm_eps=1e-6,
                routed_scaling_factor=1.0,
                topk_group=None,
                topk_method="greedy",
            ),
            is_latent=True,
            attention_of="deepseek_v3",
            experts=_DEEPSEEK,
            other_keys=MappingProxyType({"num_experts": "n_routed_experts"}),
        ),
        "deepseek_v3": Family(
            module="deepseek_v3",
            prefix="DeepseekV3",
            sizes=Sizes(61, 7168, 129280, 128, 128, None, 18432, 4096, False, 1),
            reads=_keys(
                **_LATENT,
                attention_bias=False,
                first_k_dense_replace=3,
                moe_intermediate_size=2048,
                n_group=8,
                n_routed_experts=256,
                n_shared_experts=1,
                norm_topk_prob=True,
                num_experts_per_tok=8,
                rms_norm_eps=1e-6,
                rope_interleave=True,
                routed_scaling_factor=2.5,
                topk_group=4,
            ),
            is_latent=True,
            experts=_DEEPSEEK,
            other_keys=_ROUTED,
        ),
        "dots1": Family(
            module="dots1",
            prefix="Dots1",
            sizes=Sizes(62, 4608, 152064, 32, 32, None, 10944, 2048, False, None),
            reads=_GROUPED_ROUTER
            | _keys(
                attention_bias=False,
                first_k_dense_replace=0,
                n_shared_experts=None,
                norm_topk_prob=False,
                num_experts_per_tok=None,
                rms_norm_eps=1e-6,
            ),
            windows=Windows(WindowedLayers.FROM_MAX_WINDOW_LAYERS, 4096, max_window_layers=62),
            experts=_DEEPSEEK,
            other_keys=_ROUTED,
        ),
        "ernie4_5_moe": Family(
            module="ernie4_5_moe",
            prefix="Ernie4_5_Moe",
            sizes=Sizes(28, 2560, 103424, 20, 4, None, 12288, 131072, True, 2),
            reads=_keys(
                moe_intermediate_size=1536,
                moe_k=6,
                moe_layer_end_index=-1,
                moe_layer_interval=1,
                moe_layer_start_index=1,
                moe_norm_min=1e-12,
                moe_num_experts=64,
                moe_num_shared_experts=2,
                rms_norm_eps=1e-5,
                use_bias=False,
            ),
            rope=Rope(theta=5e5),
            experts=ExpertLayout(
                others=MappingProxyType(
                    {
                        "mlp.gate.moe_statics.e_score_correction_bias": (
                            "mlp.moe_statics.e_score_correction_bias"
                        )
                    }
                ),
                keys=ExpertKeys(
                    num_experts="moe_num_experts",
                    num_chosen="moe_k",
                    num_shared="moe_num_shared_experts",
                ),
            ),
            other_keys=MappingProxyType(
                {"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"}
            ),
        ),
        "exaone_moe": Family(
            module="exaone_moe",
            prefix="ExaoneMoe",
            sizes=Sizes(32, 4096, 102400, 32, 32, None, 16384, 2048, False, 53),
            reads=_keys(
                first_k_dense_replace=1,
                mlp_layer_types=None,
                moe_intermediate_size=1024,
                n_group=1,
                norm_topk_prob=True,
                num_experts=64,
                num_experts_per_tok=8,
                num_shared_experts=1,
                rms_norm_eps=1e-5,
                routed_scaling_factor=2.5,
                topk_group=1,
            ),
            windows=Windows(
                WindowedLayers.PATTERN, 4096, every=4, may_be_null=False, full_layers_ask=True
            ),
            experts=ExpertLayout(
                others=MappingProxyType(
                    {"mlp.gate.e_score_correction_bias": "mlp.e_score_correction_bias"}
                ),
                keys=ExpertKeys(num_shared="num_shared_experts"),
            ),
        ),
        "flex_olmo": Family(
            module="flex_olmo",
            prefix="FlexOlmo",
            sizes=Sizes(32, 4096, 100352, 32, None, None, 11008, 4096, False, 100257),
            reads=_keys(
                attention_bias=False,
                norm_topk_prob=False,
                num_experts=7,
                num_experts_per_tok=5,
                rms_norm_eps=1e-6,
            ),
            rope=Rope(theta=5e5),
            experts=_OLMO,
            other_keys=_NOT_LOCALLY,
        ),
        "glm4_moe": Family(
            module="glm4_moe",
            prefix="Glm4Moe",
            sizes=Sizes(46, 4096, 151552, 96, 8, None, 10944, 131072, False, None),
            reads=_GROUPED_ROUTER
            | _keys(
                attention_bias=False,
                first_k_dense_replace=1,
                n_routed_experts=128,
                n_shared_experts=1,
                norm_topk_prob=True,
                num_experts_per_tok=8,
                rms_norm_eps=1e-5,
                use_qk_norm=False,
            ),
            rope=Rope(rotated_part=0.5),
            experts=_DEEPSEEK,
            other_keys=_ROUTED,
        ),
        "gpt_oss": Family(
            module="gpt_oss",
            prefix="GptOss",
            sizes=Sizes(36, 2880, 201088, 64, 8, 64, 2880, 131072, False, None),
            reads=_keys(
                attention_bias=True,
                num_experts_per_tok=4,
                num_local_experts=128,
                rms_norm_eps=1e-5,
                swiglu_alpha=1.702,
                swiglu_limit=7.0,
            ),
            rope=Rope(
                theta=1.5e5,
                unless_said=MappingProxyType(
                    {
                        "rope_type": "yarn",
                        "rope_theta": 1.5e5,
                        "factor": 32.0,
                        "beta_fast": 32.0,
                        "beta_slow": 1.0,
                        "truncate": False,
                        "original_max_position_embeddings": 4096,
                    }
                ),
            ),
            windows=Windows(WindowedLayers.FIXED_PATTERN, 128, every=2),
            experts=ExpertLayout(
                gate_up=("mlp.experts.gate_up_proj",),
                down="mlp.experts.down_proj",
                gate_up_bias=("mlp.experts.gate_up_proj_bias",),
                down_bias=("mlp.experts.down_proj_bias",),
                are_transposed=True,
                keys=_LOCAL,
            ),
            other_keys=_LOCALLY,
        ),
        "glm4_moe_lite": Family(
            module="glm4_moe_lite",
            prefix="Glm4MoeLite",
            sizes=Sizes(47, 2048, 154880, 20, 20, None, 10240, 202752, False, 1),
            reads=_keys(
                **{**_LATENT, "q_lora_rank": 768, "qk_nope_head_dim": 192, "v_head_dim": 256},
                attention_bias=False,
                mlp_layer_types=None,
                moe_intermediate_size=1536,
                n_group=1,
                n_routed_experts=64,
                n_shared_experts=1,
                norm_topk_prob=True,
                num_experts_per_tok=4,
                rms_norm_eps=1e-5,
                rope_interleave=True,
                routed_scaling_factor=1.8,
                topk_group=1,
            ),
            is_latent=True,
            experts=_DEEPSEEK._replace(num_dense_layers=1),
            other_keys=_ROUTED,
        ),
        "granitemoe": Family(
            module="granitemoe",
            prefix="GraniteMoe",
            sizes=Sizes(32, 4096, 32000, 32, None, None, 11008, 2048, False, 2),
            reads=_GRANITE_KEYS,
            experts=_GRANITE,
            embedding_multiplier="embedding_multiplier",
            residual_multiplier="residual_multiplier",
            logits_divisor="logits_scaling",
        ),
        "granitemoeshared": Family(
            module="granitemoeshared",
            prefix="GraniteMoeShared",
            sizes=Sizes(32, 4096, 32000, 32, None, None, 11008, 2048, False, 2),
            reads=MappingProxyType({**_GRANITE_KEYS, "shared_intermediate_size": 0}),
            experts=_GRANITE._replace(
                keys=_LOCAL._replace(shared_width="shared_intermediate_size")
            ),
            embedding_multiplier="embedding_multiplier",
            residual_multiplier="residual_multiplier",
            logits_divisor="logits_scaling",
        ),
        "hunyuan_v1_moe": Family(
            module="hunyuan_v1_moe",
            prefix="HunYuanMoEV1",
            sizes=Sizes(32, 4096, 290943, 32, None, None, 11008, 2048, False, 2),
            reads=_keys(attention_bias=False, moe_topk=1, num_experts=1, rms_norm_eps=1e-5),
            experts=ExpertLayout(
                keys=ExpertKeys(
                    num_chosen="moe_topk",
                    width="intermediate_size",
                    shared_width="intermediate_size",
                )
            ),
            other_keys=MappingProxyType(
                {"num_experts_per_tok": "moe_topk", "num_local_experts": "num_experts"}
            ),
        ),
        "minimax_m2": Family(
            module="minimax_m2",
            prefix="MiniMaxM2",
            sizes=Sizes(62, 3072, 200064, 48, 8, 128, 1536, 196608, False, 200020),
            reads=_keys(num_experts_per_tok=8, num_local_experts=256, rms_norm_eps=1e-6),
            rope=Rope(theta=5e6, rotated_elements_key="rotary_dim"),
            experts=_MIXTRAL,
            other_keys=_LOCALLY,
        ),
        "mixtral": Family(
            module="mixtral",
            prefix="Mixtral",
            sizes=Sizes(32, 4096, 32000, 32, 8, None, 14336, 131072, False, 2),
            reads=_keys(num_experts_per_tok=2, num_local_experts=8, rms_norm_eps=1e-5),
            rope=Rope(theta=1e6),
            windows=Windows(WindowedLayers.ALL, None),
            experts=_MIXTRAL,
            other_keys=_LOCALLY,
        ),
        "olmoe": Family(
            module="olmoe",
            prefix="Olmoe",
            sizes=Sizes(16, 2048, 50304, 16, None, None, 2048, 4096, False, 50279),
            reads=_keys(
                attention_bias=False,
                clip_qkv=None,
                norm_topk_prob=False,
                num_experts=64,
                num_experts_per_tok=8,
                rms_norm_eps=1e-5,
            ),
            refuses=frozenset({"sliding_window"}),
            experts=_OLMO,
            other_keys=_NOT_LOCALLY,
        ),
        "qwen2_moe": Family(
            module="qwen2_moe",
            prefix="Qwen2Moe",
            sizes=Sizes(24, 2048, 151936, 16, 16, None, 5632, 32768, False, None),
            reads=_keys(
                decoder_sparse_step=1,
                mlp_only_layers=None,
                moe_intermediate_size=1408,
                norm_topk_prob=False,
                num_experts=60,
                num_experts_per_tok=4,
                qkv_bias=True,
                rms_norm_eps=1e-6,
                shared_expert_intermediate_size=5632,
            ),
            windows=Windows(WindowedLayers.EVEN_TO_MAX_WINDOW_LAYERS, 4096, on_request=True),
            experts=ExpertLayout(keys=ExpertKeys(shared_width="shared_expert_intermediate_size")),
        ),
        "qwen3_moe": Family(
            module="qwen3_moe",
            prefix="Qwen3Moe",
            sizes=Sizes(24, 2048, 151936, 32, 4, None, 6144, 32768, False, None),
            reads=_keys(
                attention_bias=False,
                decoder_sparse_step=1,
                mlp_only_layers=None,
                moe_intermediate_size=768,
                norm_topk_prob=False,
                num_experts=128,
                num_experts_per_tok=8,
                rms_norm_eps=1e-6,
            ),
            windows=Windows(WindowedLayers.ALL, 4096, on_request=True),
            experts=_QWEN,
            other_keys=_NOT_LOCALLY,
        ),
        "solar_open": Family(
            module="solar_open",
            prefix="SolarOpen",
            sizes=Sizes(48, 4096, 196608, 64, 8, 128, None, 131072, False, None),
            reads=_GROUPED_ROUTER
            | _keys(
                attention_bias=False,
                moe_intermediate_size=1280,
                n_routed_experts=128,
                n_shared_experts=1,
                norm_topk_prob=True,
                num_experts_per_tok=8,
                rms_norm_eps=1e-5,
            ),
            rope=Rope(theta=1e6),
            experts=_DEEPSEEK,
            other_keys=_ROUTED,
        ),
    }
)
"""Every one by its `model_type`."""
