"""A language model's products in ONNX Runtime's integers: how accurate, how fast. Not installed."""
