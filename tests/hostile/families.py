"""Small models of every type that Transformers knows, in folders, with the tokenizer of a tiny encoder."""

import torch
from transformers import AutoConfig, AutoModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

LARGEST = 3_000_000  # parameters of what counts as small

_NAMES = {  # of what a config may limit, by the size that it gets
    1: "n_group topk_group expand_ratio",
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_key_value_heads "
    "type_vocab_size num_experts_per_tok",
    4: "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads "
    "num_experts num_local_experts n_routed_experts",
    8: "head_dim d_kv d_head qk_rope_head_dim qk_nope_head_dim v_head_dim rotary_dim state_size "
    "time_step_rank",
    16: "kv_lora_rank q_lora_rank patch_size",
    32: "hidden_size embedding_size embedding_dim d_model n_embd dim emb_dim image_size projection_dim "
    "moe_intermediate_size shared_expert_intermediate_size",
    64: "intermediate_size d_inner d_ff ffn_dim n_inner hidden_dim encoder_ffn_dim decoder_ffn_dim mlp_dim",
    160: "max_position_embeddings n_positions",
}
_SIZES = {name: size for size, names in _NAMES.items() for name in names.split()}
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
