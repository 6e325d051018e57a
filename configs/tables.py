"""CPRL's Tables 3 to 6: ours beside the printed numbers, cell by cell, with the difference.

Paper: Wang et al., "Causal Perception Inspired Representation Learning for Trustworthy Image Quality Assessment",
Displays 2024. Table 3: networks and defences under FGSM and PGD; 4: target-free, perceptual, universal; 5: SortMask's
rate; 6: ablation. The printed numbers are in cprl_jax/experiments/cprl/published.csv, the rows in paper_tables.py.

  python -m cprl_jax.main --config=configs/tables.py:table=3,dataset=livec --config.dataset.manual_dir=DIR \
      --config.model.weights=resnet50.pth --config.paper_table.weights.resnet=resnet50.pth
  python -m cprl_jax.main --config=configs/tables.py:table=3,dataset=livec ... --config.dry_run
  python -m cprl_jax.main --config=configs/tables.py:table=6,network=efficientnet_lite ...         # on a laptop

The same command again computes the cells that are missing and prints the table of those that are there. Tables with
one --workdir share the models that they have in common. --config.dry_run says what would be computed, and how long it
takes.
The printed schedule (16 epochs of 25 crops of 224 pixels) is for an accelerator.

Arguments (--config=configs/tables.py:key=value,key=value):
  table      3 (default), 4, 5 or 6
  dataset    livec (default), live, vcl, koniq, or any other; what the paper printed of its own stands beside it
             (--config.paper_table.published=livec for photographs of LIVE-C in a folder: dataset=own)
  network    of the defences: hyperiqa (default, the paper's), efficientnet_lite (its weights come with
             cprl_jax[imagenet]), squeezenet, resnet18, ...; the rows then say so
  rows       some rows of the table, joined by +, such as nt+cprl
  schedule   paper (default), or short (default for the small networks): see configs/livec.py
"""

from cprl_jax.experiments.cprl import presets


def get_config(argument: str | None = None):
    return presets.paper_table(argument)
