"""The pipeline around training: kills, faulty stores, tokenizers."""
