"""Causal-IQA (Zhong et al., ICML 2024): images divided by confounders, and updates in which subsets count alike."""
