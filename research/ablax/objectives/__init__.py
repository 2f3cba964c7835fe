"""What is learned: each objective turns rows into batches and logits into sums of losses."""
