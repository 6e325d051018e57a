r"""Causal-IQA: trained on synthetic distortions, tested without further training on authentic ones.

Paper: Zhong et al., "Causal-IQA: Towards the Generalization of Image Quality Assessment Based on Causal Inference",
ICML 2024, Table 4: SROCC of CIS 0.651 on CID2013, 0.684 on LIVE-C, 0.658 on KonIQ-10k; of CIP 0.683, 0.624, 0.704; of
plain training (ERM) 0.538, 0.538, 0.553. Needs the official releases (docs/datasets.md), all in one folder, and
ResNet-18's ImageNet weights; for an accelerator.

  python -m cprl_jax.main --config=configs/causal_iqa.py --config.dataset.manual_dir=DIR \
      --config.model.weights=resnet18.pth --workdir=runs/causal_iqa
  python -m cprl_jax.main --config=configs/causal_iqa.py:clusters=3,updates=cis ...        # c in 1..5 (Fig. 3)
  python -m cprl_jax.main --config=configs/causal_iqa.py:content=false ...                 # CIS\c, CIP\c (Table 4)
  python -m cprl_jax.main --config=configs/causal_iqa.py:levels=true ...                   # CIS+L, CIP+L (Table 7)
  python -m cprl_jax.main --config=configs/causal_iqa.py:train=tid2013+kadid10k+mlive ...  # CIS+M, CIP+M (Table 10)

Fine-tuned afterwards (Tables 2 and 5: 80 % of the set, 30 epochs; the ratio t of Fig. 3 is 1 - test_fraction):

  python -m cprl_jax.main --config=configs/fine_tune.py:run=runs/causal_iqa,from=cis,dataset=livec \
      --config.dataset.manual_dir=DIR --config.dataset.test_fraction=0.2

Without those sets: on one made from photographs, on two cores in a quarter of an hour (for the test on LIVE-C,
ChallengeDB_release must be in SET, or linked from there):

  python -m cprl_jax.data.synthesize --images=PHOTOGRAPHS --out=SET
  python -m cprl_jax.main --config=configs/causal_iqa.py:train=own,backbone=squeezenet,updates=erm+cis+cip \
      --config.dataset.manual_dir=SET --config.model.weights=squeezenet1_1.pth \
      --config.evaluation.datasets="('livec',)"

The paper trains on all images of its sets. Here a tenth of the scenes is held out for a first test.

Arguments (--config=configs/causal_iqa.py:key=value,key=value):
  updates    erm, metaiqa, cis, cip or some of them, joined by + (default all)
  train      data sets of synthetic distortions, joined by + (default tid2013+kadid10k)
  clusters   number of content clusters, 1 to 5 (default 2)
  content    true (default), or false: subsets by distortion alone
  levels     false (default), or true: subsets by level as well
  reduction  how the clustered features are reduced: tsne (default, as the paper says), pca or none
  backbone   resnet18 (default), resnet34 or resnet50 (Tables 6 and 9); squeezenet: small crops and few steps, for a CPU
"""

from cprl_jax.experiments.causal_iqa import presets


def get_config(argument: str | None = None):
    config, values = presets.paper("causal_iqa", argument, {"train": None})
    config.dataset.name = values.get("train", "tid2013+kadid10k")
    config.dataset.test_fraction, config.dataset.validation_fraction = 0.1, 0.0
    config.evaluation.datasets = ("cid2013", "livec", "koniq")
    return config
