"""Break a cluster on purpose, within bounds, write down what its clients saw, and let a machine judge."""
