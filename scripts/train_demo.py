"""Train the demo model that `penstock serve` serves when it is given no model.

The model is a Llama of some four million parameters, trained from scratch on text that
`demo_corpus.py` generates from templates. The folder it writes is an ordinary Hugging Face model:
configuration, bfloat16 weights, tokenizer with chat template, generation configuration.

    python scripts/train_demo.py --threads 1 --compile --output penstock/engine/demo

This took 57 minutes on one core of an AMD EPYC that other programs shared (46 for the first stage); the loss at the end
was 0.25. `--compile` needs a C++ compiler and saves about a fifth of the time.

Everything is drawn from one seed, so the same versions on the same kind of machine give the same weights. `--shrink 40
--output /tmp/demo` tries the whole path in about two minutes.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import demo_corpus
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

BEGIN, END, STOP, PAD = "<|begin|>", "<|end|>", "<|endoftext|>", "<|pad|>"
ROLES = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}
SPECIAL_TOKENS = [PAD, BEGIN, END, STOP, *ROLES.values()]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}<|system|>"
    "{% elif message['role'] == 'assistant' %}<|assistant|>"
    "{% else %}<|user|>{% endif %}"
    "{{ message['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 2048
CONTEXT = 4096
PLAIN_SHARE = 0.05
BARE_SHARE = 0.3
LONG_EVERY = 8
LONG_ROW = 1024
WAITING = 64


@dataclass(frozen=True)
class Stage:
    """One run through warm-up and cosine."""

    steps: int
    learning_rate: float
    practice: float
    seed: int


# Everything first; then mostly what comes hard to the model, copying and numbers.
STAGES = (Stage(1900, 2.5e-3, 0.0, 1), Stage(500, 1.5e-3, 0.7, 2))


@dataclass(frozen=True)
class Options:
    """What the command line sets."""

    output: Path
    start: Path | None
    first_stage: int
    shrink: int
    batch_tokens: int
    row_tokens: int
    layers: int
    threads: int
    seed: int
    compile: bool


def parse_options() -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train Penstock's demo model.")
    parser.add_argument("--output", type=Path, default=Path("penstock/engine/demo"))
    parser.add_argument("--first-stage", type=int, default=1, choices=range(1, len(STAGES) + 1))
    parser.add_argument("--start", type=Path, help="folder from which a first stage above 1 takes its weights")
    parser.add_argument("--shrink", type=int, default=1, help="divide the number of steps, to try the script")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--row-tokens", type=int, default=256)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="a fifth faster; needs a C++ compiler")
    return Options(**vars(parser.parse_args()))


# --- tokenizer -----------------------------------------------------------------------------------


def sample_texts(rng: random.Random, number: int) -> Iterator[str]:
    """Texts from which the tokenizer learns its merges."""
    for _ in range(number):
        yield from (message["content"] for message in demo_corpus.conversation(rng))
        if rng.random() < PLAIN_SHARE:
            yield demo_corpus.plain_text(rng)


def train_tokenizer(seed: int) -> Tokenizer:
    """A byte-level BPE whose digits stay single."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample_texts(random.Random(seed), 30000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as Transformers saves and loads it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[STOP, *ROLES.values()],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


# --- data ----------------------------------------------------------------------------------------


class Encoder:
    """Turns conversations and documents into token ids, with a mark on those to be learned."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.special = {token: int(tokenizer.token_to_id(token)) for token in SPECIAL_TOKENS}

    def ids(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def chat(self, messages: list[demo_corpus.Message]) -> tuple[list[int], list[bool]]:
        """A conversation as the chat template lays it out; the answers are learned."""
        tokens, learned = [self.special[BEGIN]], [False]
        for message in messages:
            body = [*self.ids(message["content"].strip()), self.special[END]]
            tokens += [self.special[ROLES[message["role"]]], *body]
            learned += [False, *[message["role"] == "assistant"] * len(body)]
        return tokens, learned

    def plain(self, text: str, bare: bool) -> tuple[list[int], list[bool]]:
        """A document without roles, all of it learned; a bare one has no begin token."""
        tokens = [*self.ids(text), self.special[STOP]]
        learned = [True] * len(tokens)
        return (tokens, learned) if bare else ([self.special[BEGIN], *tokens], [False, *learned])

    def sample(self, rng: random.Random, practice: float) -> tuple[list[int], list[bool]]:
        """One conversation or document; a share of them for practice."""
        if practice and rng.random() < practice:
            return self.chat(demo_corpus.practice(rng))
        if rng.random() < PLAIN_SHARE:
            return self.plain(demo_corpus.plain_text(rng), rng.random() < BARE_SHARE)
        return self.chat(demo_corpus.conversation(rng))


Sample = tuple[list[int], list[bool]]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def fill_row(draw: Callable[[], Sample], waiting: list[Sample], room: int, padding: int) -> Sample:
    """A row of whole samples, each the first that fits among those that wait, then padding."""
    tokens: list[int] = []
    learned: list[bool] = []
    while True:
        while len(waiting) < WAITING:
            waiting.append(draw())
        left = room - len(tokens)
        at = next((i for i, sample in enumerate(waiting) if len(sample[0]) <= left), None)
        if at is None:
            return tokens + [padding] * left, learned + [False] * left
        more, marks = waiting.pop(at)
        tokens += more
        learned += marks


def batches(encoder: Encoder, options: Options, stage: Stage) -> Iterator[Batch]:
    """Inputs, targets and marks; every eighth batch consists of long rows."""
    rng, waiting = random.Random(options.seed + stage.seed), list[Sample]()
    padding = encoder.special[PAD]
    for step in range(stage.steps):
        width = LONG_ROW if step % LONG_EVERY == 0 else options.row_tokens
        rows = [
            fill_row(lambda: encoder.sample(rng, stage.practice), waiting, width + 1, padding)
            for _ in range(options.batch_tokens // width)
        ]
        ids = torch.tensor([row[0] for row in rows])
        learned = torch.tensor([row[1] for row in rows])
        yield ids[:, :-1], ids[:, 1:].reshape(-1), learned[:, 1:].reshape(-1)


Layers = Callable[..., Any]

# --- model ---------------------------------------------------------------------------------------


def build_model(tokenizer: PreTrainedTokenizerFast, layers: int) -> LlamaForCausalLM:
    """A fresh Llama of the size of the demo model."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    return LlamaForCausalLM(config)


def optimizer_for(model: LlamaForCausalLM, learning_rate: float) -> torch.optim.AdamW:
    """AdamW, with weight decay on the matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)


def scheduler_for(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A short warm-up, then a cosine down to one hundredth."""
    warm = min(100, max(1, steps // 10))
    return torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, 1.0, warm),
            torch.optim.lr_scheduler.CosineAnnealingLR(
                optimizer, steps - warm, float(optimizer.param_groups[0]["lr"]) / 100
            ),
        ],
        [warm],
    )


def loss_of(model: LlamaForCausalLM, layers: Layers, batch: Batch) -> torch.Tensor:
    """The mean loss over the tokens to be learned; the others skip the output layer."""
    inputs, targets, marked = batch
    hidden = layers(input_ids=inputs, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1])[marked])
    return functional.cross_entropy(logits, targets[marked])


def train(model: LlamaForCausalLM, encoder: Encoder, options: Options, stage: Stage) -> float:
    """Run all steps and return the mean loss of the last hundred."""
    optimizer = optimizer_for(model, stage.learning_rate)
    scheduler = scheduler_for(optimizer, stage.steps)
    layers: Layers = torch.compile(model.model, dynamic=False) if options.compile else model.model
    start, recent = time.monotonic(), list[float]()
    model.train()
    for step, batch in enumerate(batches(encoder, options, stage), 1):
        loss = loss_of(model, layers, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        recent = [*recent[-99:], loss.item()]
        if step % 50 == 0 or step == stage.steps:
            report(step, recent[-50:], time.monotonic() - start, options)
    return sum(recent) / len(recent)


def report(step: int, recent: list[float], seconds: float, options: Options) -> None:
    """Print one line of progress."""
    speed = step * options.batch_tokens / seconds
    loss = sum(recent) / len(recent)
    print(f"step {step:5d}  loss {loss:.4f}  {seconds:6.0f} s  {speed:.0f} tokens/s", flush=True)


# --- evaluation ----------------------------------------------------------------------------------


@torch.no_grad()
def answer(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    messages: list[demo_corpus.Message],
    limit: int = 240,
) -> str:
    """The greedy answer to a conversation."""
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    output = model.generate(ids, max_new_tokens=limit, do_sample=False)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


@torch.no_grad()
def continuation(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    """The greedy continuation of a plain text."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    output = model.generate(ids, max_new_tokens=240, do_sample=False)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """The share of right answers for each category of questions that were never trained on."""
    shares = {}
    for category, probes in demo_corpus.PROBES.items():
        right = 0
        for lines, expected in probes:
            said = answer(model, tokenizer, demo_corpus.as_messages(lines))
            right += expected.lower() in said.lower()
            verdict = "right" if expected.lower() in said.lower() else "WRONG"
            print(f"{verdict} [{category}] {lines[-1]!r} -> {said!r}", flush=True)
        shares[category] = right / len(probes)
    return shares


def evaluate_sums(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """The share of right sums: all with one digit, and a sample with two."""
    rng = random.Random(3)
    small = [(a, b) for a in range(10) for b in range(10)]
    large = [(rng.randint(10, 99), rng.randint(10, 99)) for _ in range(50)]
    cases = {
        "one digit +": [(f"What is {a} + {b}?", a + b) for a, b in small],
        "one digit -": [(f"What is {a} - {b}?", a - b) for a, b in small if a >= b],
        "one digit *": [(f"What is {a} * {b}?", a * b) for a, b in small],
        "two digits +": [(f"What is {a} + {b}?", a + b) for a, b in large],
        "two digits -": [(f"What is {max(p)} - {min(p)}?", max(p) - min(p)) for p in large],
    }
    return {name: sums_right(model, tokenizer, rows) for name, rows in cases.items()}


def sums_right(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[tuple[str, int]]) -> float:
    """The share of questions whose answer ends with the right number."""
    said = [answer(model, tokenizer, demo_corpus.as_messages((question,)), 60) for question, _ in rows]
    return sum(text.endswith(f"= {value}.") for text, (_, value) in zip(said, rows, strict=True)) / len(rows)


# --- output --------------------------------------------------------------------------------------


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder: bfloat16 weights, configuration, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(STOP)],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "chat_template": CHAT_TEMPLATE}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def check_template(encoder: Encoder, tokenizer: PreTrainedTokenizerFast) -> None:
    """The layout used for training must be the one of the chat template."""
    messages = demo_corpus.conversation(random.Random(11))
    rendered = tokenizer.apply_chat_template(messages, return_dict=False)
    if rendered != encoder.chat(messages)[0]:
        raise RuntimeError("the chat template and the training data differ")


def check(folder: Path) -> None:
    """Load the folder as a user would, and evaluate it in both precisions."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for precision in (torch.float32, torch.bfloat16):
        model = LlamaForCausalLM.from_pretrained(folder, dtype=precision).eval()
        shares = {**evaluate(model, tokenizer), **evaluate_sums(model, tokenizer)}
        print(precision, json.dumps({name: round(share, 3) for name, share in shares.items()}))
        for text in ("Once upon a time", "Goodput is"):
            print(repr(continuation(model, tokenizer, text)))


def run_stage(core: Tokenizer, options: Options, number: int) -> None:
    """Run one stage, from scratch or from what the stage before has saved, and save the result."""
    tokenizer, encoder = wrap_tokenizer(core), Encoder(core)
    if number == 0:
        check_template(encoder, tokenizer)
        model = build_model(tokenizer, options.layers)
    else:
        model = LlamaForCausalLM.from_pretrained(options.start or options.output, dtype=torch.float32)
    print(f"stage {number + 1}: {model.num_parameters()} parameters", flush=True)
    stage = STAGES[number]
    stage = replace(stage, steps=max(10, stage.steps // options.shrink))
    print(f"final loss {train(model, encoder, options, stage):.4f}", flush=True)
    save(model, tokenizer, options.output)


def main() -> None:
    """Generate, train, write, check."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    core = train_tokenizer(options.seed)
    for number in range(options.first_stage - 1, len(STAGES)):
        run_stage(core, options, number)
        options = replace(options, start=None)
    check(options.output)


if __name__ == "__main__":
    main()
