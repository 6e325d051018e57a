"""The card of a model: what it is, what it learned from, how far to trust it, and how it was made."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from cprl_jax import methods, models
from cprl_jax.data import computed_labels
from cprl_jax.report.table import Column, Table
from cprl_jax.runtime.stamps import VERSION
from cprl_jax.training.setup import network_method

_HEADER = """---
license: apache-2.0
library_name: cprl_jax
tags:
- image-quality-assessment
- no-reference
- adversarial-robustness
- jax
- flax
---
"""
_USE = """
```python
import cprl_jax

model = cprl_jax.load(FOLDER)  # this folder, or user/repo on Hugging Face
model.score(["photo.jpg"])  # 0..100, higher is better
model.certify(["photo.jpg"], radius=0.05)  # the median under noise, and an interval that no such change leaves
```

`python -m cprl_jax.score photo.jpg --model=FOLDER` does the same for files and folders.
"""
_LIMITS = """
* It ranks photographs like those that it learned from, by technical quality. On other kinds (drawings, screens, scans,
  medical images), and on distortions that they did not have, its scores mean little.
* A score says nothing of what a picture shows, of beauty, or of whether it is authentic.
* The numbers under attack are of the attacks that were run: a stronger one may do more. Only the certified intervals
  hold against every change inside their radius, with their stated confidence, for the median under noise.
* Do not let it alone decide anything about people or their work.
"""


def of_run(
    config: ml_collections.ConfigDict,
    method: str,
    run: Path,
    *,
    notice: str = "",
    command: str = "",
    measured: Sequence[str] = (),
) -> str:
    """The card of a model of a run, with the numbers of its report, if there is one.

    Args:
      config, method: of the run.
      run: its folder.
      notice: the terms of the data, which must go along with what was made of it.
      command: what trains and exports it again.
      measured: sentences about the weights as they are kept, and about certificates.
    """
    model, evaluation = config.model, config.evaluation
    network = models.network_of(model)
    name = network_method(config, method)
    title = methods.title(name, config[name]) if name == method else method
    named = {"": "random weights", "imagenet": "its published ImageNet weights"}
    weights = named.get(model.weights, f"the weights in {Path(model.weights).name}")
    licences = sorted({f"{weights.source}: {weights.licence}" for weights in network.weights}) if model.weights else []
    resized = f", resized to {config.dataset.resize} pixels a side" if config.dataset.resize else ""
    crops = f"{evaluation.crops} crop{'s' * (evaluation.crops > 1)} of {evaluation.crop_size} pixels"
    sections = {
        "What it is": f"A no-reference image quality model: {network.described(model.backbone)} ({network.source}), "
        f"trained by: {title}, from {weights}. It takes the mean score of {crops} of each image{resized}. "
        f"Scores are on 0..100, higher is better.",
        "Use": _USE.strip(),
        "Data and terms": "\n\n".join(
            [_data(config, run), notice.strip() or "The terms of the data are those of its release: docs/datasets.md."]
            + ([f"Published weights of this network, and their licences: {'; '.join(licences)}."] if licences else [])
        ),
        "Numbers": _numbers(method, run),
        "As kept here": "\n\n".join(measured) or "float32, as trained.",
        "Failure cases": _failures(method, run),
        "Limits": _LIMITS.strip(),
        "How to reproduce": f"cprl_jax {VERSION}:\n\n```\n{command.strip() or _command(config)}\n```",
        "Licence": "Apache-2.0, as cprl_jax; the terms of the data above stay with the weights.",
    }
    text = "\n\n".join(f"## {heading}\n\n{content}" for heading, content in sections.items())
    return f"{_HEADER}\n# {title} on {network.described(model.backbone)}\n\n{text}\n"


def amended(card: str, change: str) -> str:
    """The card of a copy of a model that differs from what the card describes."""
    return f"{card.rstrip()}\n\n## This copy\n\nThis copy differs from the model described above: {change}.\n"


def _data(config: ml_collections.ConfigDict, run: Path) -> str:
    counts = ""
    try:
        split = json.loads((run / "split.json").read_text(encoding="utf-8"))
        sizes = [f"{len(split[part])} for {part}" for part in ("train", "validation", "test")]
        counts = f": {', '.join(sizes)}, seed {config.seed}"
    except (OSError, ValueError, KeyError, TypeError):  # a run of several splits, or a job that keeps none
        pass
    labels = " Its labels come from a formula, not from people." if computed_labels(config.dataset) else ""
    return f"Trained and tested on parts of the data set `{config.dataset.name}`{counts}.{labels}"


def _numbers(method: str, run: Path) -> str:
    rows = [
        {
            "attack": row["attack"],
            **{key: float(row[key]) for key in ("radius", "srcc", "plcc", "srcc_low", "srcc_high")},
        }
        for row in _rows(run / "report" / "table.csv")
        if row.get("method") == method and row.get("against") == "mos"
    ]
    if not rows:
        return f"Not measured: {run.name} has no report of this model."
    columns = [
        Column("radius", "radius, 1/255", digits=2),
        Column("srcc", "SRCC"),
        Column("srcc_low", "95 % from"),
        Column("srcc_high", "to"),
        Column("plcc", "PLCC"),
    ]
    table = Table(rows, columns, line=("attack", "radius"), heading="attack", name=lambda row: row["attack"])
    found = "Against the labels of the test images, clean (`none`) and attacked, with the weights as trained (float32):"
    return f"{found}\n\n{table.markdown()}".rstrip()


def _failures(method: str, run: Path) -> str:
    rows = [
        row
        for row in _rows(run / "report" / "scores.csv")
        if row.get("method") == method and row.get("attack") == "none"
    ]
    worst = sorted(rows, key=lambda row: -abs(float(row["score"]) - float(row["mos"])))[:5]
    if not worst:
        return "Not listed: the run has no report."
    lines = [f"* `{row['name']}`: labelled {float(row['mos']):.0f}, scored {float(row['score']):.0f}" for row in worst]
    return "The test images on which it errs most, with the weights as trained:\n\n" + "\n".join(lines)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def _command(config: ml_collections.ConfigDict) -> str:
    train = f"python -m cprl_jax.main --config=FILE --config.seed={config.seed} --workdir=RUN"
    return f"{train}\npython -m cprl_jax.export --run=RUN --out=FOLDER"
