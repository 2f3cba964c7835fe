"""From text to batches: sources, splits, tokenizers, the token store, layouts and the loader."""
