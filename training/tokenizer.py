"""Byte-level BPE that transformers and llama.cpp (`gpt2` / `gpt-2`) read alike.

Command: `python -m training.tokenizer --data FOLDER --work FOLDER`.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Annotated

import typer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.chat import DOCUMENT, END, SPECIAL_TOKENS, TEMPLATE
from training.corpus import documents
from training.shapes import CONTEXT

ENTRIES = 4_096
MOST_CHARACTERS = 3_000_000


def learned(texts: Iterable[str], entries: int = ENTRIES) -> Tokenizer:
    """A tokenizer with the special tokens first and merges learned from `texts`.

    Special tokens within the texts separate them and take part in no merge.
    """
    special = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pieces = (piece for text in texts for piece in special.split(text))
    tokenizer.train_from_iterator(pieces, trainer)
    return tokenizer


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers saves it: chat template, beginning and stop tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=DOCUMENT,
        eos_token=END,
        pad_token=DOCUMENT,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def balanced(texts: Sequence[str], most: int = MOST_CHARACTERS) -> list[str]:
    """As many leading texts as fit into `most` characters, at least one."""
    ends = accumulate(map(len, texts))
    return list(texts[: max(1, len(list(takewhile(lambda end: end <= most, ends))))])


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with the *.jsonl.xz corpora.")],
    work: Annotated[Path, typer.Option(help="Work folder, made if missing.")],
    entries: Annotated[int, typer.Option(help="Size of the vocabulary.")] = ENTRIES,
) -> None:
    """Learn the tokenizer from the training part of the corpora."""
    work.mkdir(parents=True, exist_ok=True)
    found = documents(data, "train")
    texts = (text for domain in found.values() for text in balanced(domain))
    tokenizer = learned(texts, entries)
    tokenizer.save(str(work / "tokenizer.json"))
    typer.echo(f"{tokenizer.get_vocab_size()} entries")


if __name__ == "__main__":
    typer.run(main)
