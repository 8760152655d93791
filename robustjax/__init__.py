"""A functional JAX toolkit for adversarial machine learning: attacks, training, certificates, poisons and defenses."""
