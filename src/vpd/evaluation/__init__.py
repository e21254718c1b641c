"""Evaluation: inference protocols, scores of the three tasks, resumable runs over seeds and milestones, and panels."""

from vpd.evaluation.attention import records_attention
from vpd.evaluation.run import evaluate

__all__ = ["evaluate", "records_attention"]
