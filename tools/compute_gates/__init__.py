"""What GPUs' products cost a language model, by emulation: where the gates of a compute class come from."""
