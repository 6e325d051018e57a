"""Causal-IQA (Zhong et al., ICML 2024): images divided by their confounders, and training that is even over the parts.

`features` looks at the images, `division` makes clusters of content and the subsets of (content, distortion),
`sampling` says which images a step sees, `updates` has the steps: CIS, CIP, MetaIQA and plain training.
"""
