r"""Leave-one-distortion-out: how well quality is judged under a distortion that training never saw.

Paper: Zhong et al., "Causal-IQA: Towards the Generalization of Image Quality Assessment Based on Causal Inference",
ICML 2024, Table 3 (KADID-10k, mean SROCC over 25 types: MetaIQA 0.767, CIS 0.808, CIP 0.797) and Table 12 (TID2013, 24
types: MetaIQA 0.854, CIS 0.879, CIP 0.884). Needs the official release (docs/datasets.md) and ResNet-18's ImageNet
weights; for an accelerator.

  python -m cprl_jax.main --config=configs/leave_one_out.py --config.dataset.manual_dir=DIR \
      --config.model.weights=resnet18.pth --workdir=runs/leave_one_out
  python -m cprl_jax.main --config=configs/leave_one_out.py:dataset=tid2013 ...

Every (distortion, update, seed) is trained, tested and kept in workdir/cells once. The same command again resumes.
--config.causal_iqa.seeds=3 adds seeds to what is there, --config.causal_iqa.held_out chooses distortions.

Arguments (--config=configs/leave_one_out.py:key=value,key=value):
  dataset    kadid10k (default) or tid2013
  updates    erm, metaiqa, cis, cip or some of them, joined by + (default all)
  clusters, content, levels, reduction, backbone: as in configs/causal_iqa.py
"""

from cprl_jax.experiments.causal_iqa import presets


def get_config(argument: str | None = None):
    config, values = presets.paper("leave_one_out", argument, {"dataset": ("kadid10k", "tid2013")})
    config.dataset.name = values.get("dataset", "kadid10k")
    return config
