"""Planning: memory, speed and batch sizes of a stage, from a model's config alone."""
