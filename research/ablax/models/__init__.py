"""Pure models: n-gram, LSTM and Transformer language models, and the layers they are made of."""
