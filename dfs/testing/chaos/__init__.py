"""Break a real cluster on purpose, write down what its clients saw, and let a machine judge if all promises held."""
