"""Quality models that are fitted, not trained by gradients: features of the image, and a support vector regression.

BRISQUE (Mittal et al., IEEE TIP 2012) has statistics of natural scenes, CORNIA (Ye et al., CVPR 2012) and HOSA (Xu et
al., IEEE TIP 2016) a codebook of patches; the parameters of their regression are chosen by five-fold cross-validation
over scenes. NIQE (Mittal et al., 2013) and IL-NIQE (Zhang et al., IEEE TIP 2015) read no label, but undistorted
photographs (--config.train.pristine=DIR). The test part is then scored and attacked, as elsewhere.

On 777 images of LIVE-C (622 of them for fit and choice, seed 0), SRCC is 0.55 for BRISQUE, 0.61 for CORNIA and 0.60 for
HOSA, each within 0.13 (95 %), in 1.7, 1.0 and 2.2 minutes of processor time with the first command below and
--config.evaluation.attacks="()" --config.evaluation.trust_images=0 --config.evaluation.landscape_points=0. Five folds
were preferred to one validation part (BRISQUE: 0.51) after splits of these images had been compared, their test parts
included: the gain is not free of that choice.

Fitted to the 24 photographs of the Kodak set, NIQE has 0.51 (0.38 to 0.62) on the same 155 test images, IL-NIQE 0.35
(0.20 to 0.48), in 1.3 and 9.7 minutes of processor time; about six of IL-NIQE's are for the attacked images of the
report (--config.evaluation.examples=0 leaves them out). These photographs have no more than 106 sharp blocks for the
468 features of IL-NIQE: with the published parameters (--config.model.weights=templateModel.mat) it has 0.48 (0.34 to
0.59).

  python -m cprl_jax.main --config=configs/classical.py:model=brisque,dataset=own --config.dataset.manual_dir=DIR
  python -m cprl_jax.main --config=configs/classical.py:model=brisque,dataset=livec --config.evaluation.attacks="()"

The models are then at hand by their run's folder: `python -m cprl_jax.score --model=runs/classical-brisque-own`,
and for the perceptual attack --config=configs/perceptual_attack.py:models=run:runs/classical-brisque-own:plain.

Arguments (--config=configs/classical.py:key=value,key=value):
  model     brisque (default), cornia, hosa, ilniqe, niqe
  dataset   livec (default), any other of data.DATASETS, or several joined by +
  methods   plain (default), and defences that train nothing, joined by +: plain+blur
"""

from cprl_jax.config import defaults as config_lib
from cprl_jax.config import presets
from cprl_jax.models import NETWORKS

SPANS = {"niqe": 20.0, "ilniqe": 100.0}  # distances from 0 to these become scores from 100 to 0
SMALL = {"embedded": 112, "kadid10k": 384, "tid2013": 384}  # the shorter side of their images, in pixels


def get_config(argument: str | None = None):
    fitted = tuple(name for name, network in NETWORKS.items() if network.fit is not None)
    values = presets.parse_argument(argument, {"model": fitted, "dataset": None, "methods": None})
    config = config_lib.default()
    config.model.name = values.get("model", "brisque")
    config.dataset.name = values.get("dataset", "livec")
    config.methods = presets.parse_methods(values.get("methods", "plain"))
    if config.model.name in SPANS:
        config.model.score_mean, config.model.score_std = 100.0, 100.0 / SPANS[config.model.name]
    evaluation = config.evaluation
    evaluation.crops = 1
    evaluation.crop_size = min(SMALL.get(name, 500) for name in config.dataset.name.split("+"))
    evaluation.batch_size = 8
    evaluation.radii = (1.0, 2.0)
    evaluation.trust_images = 4
    return config
