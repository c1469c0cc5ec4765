"""The only folder that writes to MLflow: runs, predictions, the registry, the promotion gate."""
