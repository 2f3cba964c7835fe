"""Task pipelines: a trained model and a task make a function from texts to what users of transformers know."""
