"""Cells side by side: scopes, the LightningModule, checkpoints, records."""
