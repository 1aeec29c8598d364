"""A dense checkpoint like that of Qwen2.5, in the sizes of the debug preset."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from model_core import OmniMRIConfig
from model_core.tokenization import SPECIAL_TOKENS, train_tokenizer

QWENS_OWN = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPARE = 271  # as in the checkpoints of 0.5 B and 1.5 B parameters


def write_qwen_checkpoint(folder: Path) -> Path:
    """Write several files of bfloat16 weights, and a tokenizer of Qwen2's class with entries to spare; return the folder."""
    trained = json.loads(train_tokenizer(["Is there a lesion? yes, no."], 300).backend_tokenizer.to_str())["model"]
    words = [word for word in trained["vocab"] if word not in SPECIAL_TOKENS]
    tokenizer = Qwen2Tokenizer(
        vocab={word: place for place, word in enumerate(words)},
        merges=[tuple(merge) for merge in trained["merges"]],
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=QWENS_OWN,
    )
    tokenizer.save_pretrained(folder)
    sizes = OmniMRIConfig.from_preset("debug")
    torch.manual_seed(0)
    dense = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer) + SPARE,
            hidden_size=sizes.hidden_size,
            intermediate_size=sizes.moe_intermediate_size,
            num_hidden_layers=sizes.num_hidden_layers,
            num_attention_heads=sizes.num_attention_heads,
            num_key_value_heads=sizes.num_key_value_heads,
            rope_parameters={"rope_type": "default", "rope_theta": 5e5},
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
            initializer_range=0.2,
        )
    )
    for name, parameter in dense.named_parameters():
        if name.endswith("bias"):  # zero at first, where no mistake shows
            torch.nn.init.normal_(parameter)
    dense.to(torch.bfloat16).save_pretrained(folder, max_shard_size="30KB")
    return folder
