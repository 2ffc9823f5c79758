//! NumPy's `.npy` files: what `hotset logits` writes, and what the golden tests read.
