"""Trained models judged: scores, attacks of the tables, statistics, other data sets, several splits."""
