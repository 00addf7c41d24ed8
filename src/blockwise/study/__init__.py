"""Config or Python objects -> cells -> records. Imports nothing, so that tables need not wait for torch."""
