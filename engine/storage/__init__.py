"""Where a run's files lie: checked URLs, stores with exclusive publish, the lock, and the claim on an output."""
