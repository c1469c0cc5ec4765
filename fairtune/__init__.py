"""fairtune: search which parts of a model to fine-tune, judged by fairness on validation data."""

__version__ = "0.1.0"
