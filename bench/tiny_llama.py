"""A tiny Llama with random weights, a byte-level BPE tokenizer and a chat template: a whole checkpoint in a second."""

from pathlib import Path
from typing import Any

VOCAB = 320
CONTEXT = 512
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
_TEXT = ["the quick brown fox jumps over the lazy dog", "a penstock leads the water to the turbine", '{"name": "x"}']


def build(folder: Path, spread: float = 5.0) -> Path:
    """Save model and tokenizer. Matrices are spread so that a wrong mask, scale or page would change the tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    end = _build_tokenizer(folder)
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=end,
            pad_token_id=end,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                weight.mul_(spread)
    model.save_pretrained(folder)
    return folder


def _build_tokenizer(folder: Path) -> int:
    """Saved as transformers saves tokenizers; the id of the token that ends an answer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    assert tokenizer.get_vocab_size() == VOCAB, f"{tokenizer.get_vocab_size()} tokens were learned, not {VOCAB}"
    make: Any = PreTrainedTokenizerFast
    make(tokenizer_object=tokenizer, eos_token=_SPECIAL[0], chat_template=TEMPLATE).save_pretrained(folder)
    return int(tokenizer.token_to_id(_SPECIAL[0]) or 0)
