"""Pretrained models in and out: Hugging Face checkpoints become run folders, and run folders such checkpoints."""
