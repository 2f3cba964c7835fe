"""From a program and batches to a trained state: the step, engines, optimizers, checkpoints, writers, the loop."""
