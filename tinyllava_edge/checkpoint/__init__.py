"""What a checkpoint is, read without torch: layouts, config, families, names."""
