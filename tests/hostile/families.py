"""Small models of every type that Transformers knows, in folders, with the tokenizer of a tiny encoder."""

import torch
from transformers import AutoConfig, AutoModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

LARGEST = 3_000_000  # parameters of what counts as small

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 160,
    "head_dim": 8,
    "embedding_size": 32,
    "type_vocab_size": 2,
    "d_model": 32,
    "d_inner": 64,
    "d_ff": 64,
    "d_kv": 8,
    "d_head": 8,
    "num_layers": 2,
    "num_heads": 4,
    "ffn_dim": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_layers": 2,
    "n_head": 4,
    "n_heads": 4,
    "n_inner": 64,
    "n_positions": 160,
    "dim": 32,
    "hidden_dim": 64,
    "emb_dim": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "rotary_dim": 8,
    "state_size": 8,
    "time_step_rank": 8,
    "expand_ratio": 1,
    "embedding_dim": 32,
    "image_size": 32,
    "patch_size": 16,
    "projection_dim": 32,
    "mlp_dim": 64,
}
_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
# what a text encoder needs beside sizes
_OWN = {
    "esm": {"pad_token_id": 0, "mask_token_id": 4},
    "longformer": {"attention_window": 16},
    "reformer": {"axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "funnel": {"architectures": ["FunnelModel"]},
}


def types():
    """Every type that ``AutoModel`` maps."""
    return sorted(MODEL_MAPPING_NAMES)


def write_small_model(folder, model_type, assets, **own):
    """Write a small model with random weights, ``own`` in its config, and the tokenizer of ``assets``.

    Raises whatever a type raises that is not built from these sizes; config.json is there all the same,
    unless it is the config that cannot be, and so is the tokenizer.
    """
    kind = type(AutoConfig.for_model(model_type))
    small = _small(kind().to_dict(), assets.config["vocab_size"])
    config = kind(**small | _OWN.get(model_type, {}) | own)
    config.save_pretrained(folder)
    assets.write_tokenizer(folder)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModel.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size} parameters are not small")
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)


def _small(values, vocabulary):
    small = {}
    for name, value in values.items():
        if name.endswith("_config") and isinstance(value, dict):
            named = {key: value[key] for key in ("model_type",) if key in value}
            small[name] = _small(value, vocabulary) | named
        elif name == "vocab_size":
            small[name] = vocabulary
        elif not isinstance(value, int) or isinstance(value, bool):
            continue
        elif name.endswith("vocab_size"):
            small[name] = min(value, vocabulary)
        elif name.endswith(("token_id", "token_index")):
            small[name] = _IDS.get(name, min(value, vocabulary - 1))
        elif value > 0 and name in _SIZES:
            small[name] = min(value, _SIZES[name])
    return small
