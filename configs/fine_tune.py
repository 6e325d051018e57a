"""A model that was trained here, fine-tuned on another data set.

Paper: Zhong et al., "Causal-IQA", ICML 2024, Section 4.1: 80 % of the set train, Adam with a learning rate of 1e-4 for
30 epochs. Before it, `--config.evaluation.datasets` tests the model on that set as it is.

  python -m cprl_jax.main --config=configs/fine_tune.py:run=runs/koniq,dataset=livec --config.dataset.manual_dir=DIR
  python -m cprl_jax.main --config=configs/fine_tune.py:run=runs/koniq,dataset=livec --config.dataset.test_fraction=0.5
  python -m cprl_jax.main --config=configs/fine_tune.py:run=runs/koniq,dataset=livec --config.dataset.repeats=10

Arguments (--config=configs/fine_tune.py:key=value,key=value):
  run       the folder of the run that trained the model
  from      which of its methods (default: cprl where it was trained, else the last); of a run of configs/causal_iqa.py
            an update, such as cis, or cis/seed-1
  dataset   the data set to fine-tune on, a name of config.dataset.name (docs/datasets.md)
  methods   names of cprl_jax/methods joined by + (default plain)
"""

from cprl_jax.config import presets


def get_config(argument: str | None = None):
    return presets.fine_tuning(argument)
