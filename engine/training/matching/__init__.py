"""Distribution matching (arXiv 2310.10402): the MMD terms of the fine-tune."""
