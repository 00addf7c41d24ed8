"""Train cells side by side: scopes, the LightningModule, checkpoints, records."""
