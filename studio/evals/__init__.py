"""Measurements: what the models and adapters do, judged by the judge, with intervals and raw records."""
