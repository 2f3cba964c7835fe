"""Text out of models: samplers, decoders, the compiled decode loop, and filling of masks."""
