"""CPRL on your own images: a folder, and a CSV file with a score for each image.

The file is FOLDER/labels.csv, or any other named by --config.dataset.labels. It begins with a line of column names:

  image,mos,reference,distortion,level,std,split
  blurred/roof_1.jpg,71.5,roof,blur,1,8.2,train

`image` (its path in FOLDER) and `mos` are needed, the others are not; docs/datasets.md says what they mean. Images are
JPEG, PNG, BMP, WebP or TIFF of any size, taken upright as their EXIF data say. Whatever is wrong is reported with its
line before training begins.

  python -m cprl_jax.main --config=configs/own.py --config.dataset.manual_dir=FOLDER --config.model.weights=FILE
  python -m cprl_jax.main --config=configs/own.py:backbone=squeezenet --config.dataset.manual_dir=FOLDER  # on a laptop

Scores that are not 0 (worst) to 100 (best): --config.dataset.mos_worst=1 --config.dataset.mos_best=5, and so on;
mos_worst is the larger one for labels that grow with the damage (DMOS). A fifth of the scenes is drawn to test on,
unless --config.dataset.split=official takes the column `split`.

Arguments (--config=configs/own.py:key=value,key=value):
  backbone   hyperiqa (default: HyperIQA on ResNet-50, the paper's), resnet18, resnet34, resnet50, squeezenet
  methods    names of cprl_jax/methods joined by + (default plain+plain_longer+cprl_loss+cprl)
  schedule   paper or short, as in configs/livec.py (default short for squeezenet, else paper)
"""

from cprl_jax.config import presets


def get_config(argument: str | None = None):
    return presets.cprl_experiment("own", argument)
