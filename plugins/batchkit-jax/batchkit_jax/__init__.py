"""batchkit for JAX. Importing this does nothing; :mod:`batchkit_jax.backend` imports JAX."""
