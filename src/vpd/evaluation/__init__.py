"""Evaluation: inference protocols, scores of the three tasks, resumable runs over seeds and milestones, and panels."""
