"""From answers to verdicts, just-noticeable differences and the paper's two tables (docs/study.md).

`answers` reads exports, `exclusion` leaves out what the stated rules leave out (`bt500` is one of them), `thresholds`
fits `psychometric` functions, `analyse` does all of it and writes the page. Counterexamples and tables are made where
those of a threshold are, in `experiments.perceptual`.
"""
