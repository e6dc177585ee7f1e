"""Which ratio of synthetic to real images is best, judged on the validation split alone."""
