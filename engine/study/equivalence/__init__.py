"""How many synthetic images are worth n real ones (arXiv 2508.09550)."""
