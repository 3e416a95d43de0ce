"""The valid keys and names of the section `model`; all rooms that read the section use this list."""

from __future__ import annotations

HUB_KEYS = ("revision", "cache_dir", "trust_remote_code", "token", "subfolder", "local_files_only")
MODEL_KEYS = (
    "pretrained_model_name_or_path",
    "torch_dtype",
    "dtype",
    "master_dtype",
    "attn_implementation",
    "device_map",
    "max_memory",
    "gguf_file",
    "use_safetensors",
    "variant",
    "low_cpu_mem_usage",
    *HUB_KEYS,
)
TOKENIZER_KEYS = (
    "pretrained_model_name_or_path",
    *HUB_KEYS,
    "gguf_file",
    "use_fast",
    "padding_side",
    "pad_token",
    "add_bos_token",
    "legacy",
)
TAGS = ("user_start_tag", "user_end_tag", "asst_start_tag", "asst_end_tag")
TEMPLATE_KEYS = (
    "apply_chat_template",
    "system_prompt",
    "date_string",
    "chat_template_kwargs",
    "system_prompt_with_special_tokens",
    *TAGS,
)
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "float64": "float64",
}
"""Accepted names of dtypes, and torch's name for each."""
