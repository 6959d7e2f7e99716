"""Recipe of the bundled pair: corpus, tokenizer, target, drafts, evaluation, export."""
