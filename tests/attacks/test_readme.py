"""The README's examples run, one after another in one session, and its table is that of the package."""

import inspect
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from cprl_jax import attacks

README = (Path(attacks.__file__).parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.filterwarnings("error")
def test_examples_run():
    assert len(BLOCKS) == 6
    names, results = {}, []
    # The strict promotion of ranks is this suite's, not the reader's.
    with jax.numpy_rank_promotion("allow"):
        for number, block in enumerate(BLOCKS):
            names.pop("result", None)
            exec(compile(block, f"README.md, example {number + 1}", "exec"), names)
            results.append(names.get("result"))
    plain, transfer, training, equinox, closure, flax = results
    assert np.all(plain.after < plain.before)
    assert transfer is None and np.all(names["pattern"].apply(names["images"]) <= 1)
    assert names["transferred"].images.shape == (2, 4, 8, 8, 3)
    assert training is None and np.all(np.isfinite(names["weights"]))
    assert np.all((equinox.before > 50) == (equinox.after < equinox.before))
    assert np.all(closure.after >= closure.before) and np.any(closure.after > closure.before)
    assert np.all(flax.after != flax.before) and np.all(flax.max_change <= 4 / 255)


def test_examples_are_short():
    for block in BLOCKS:
        assert len([line for line in block.splitlines() if line.strip()]) <= 12


def test_the_table_lists_every_attack():
    listed = re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE)
    public = {name for name in attacks.__all__ if inspect.isfunction(getattr(attacks, name))}
    attack_names = {
        name
        for name in public
        if {"score_fn", "fixed_fn", "function"} & set(inspect.signature(getattr(attacks, name)).parameters)
    }
    assert len(listed) == len(set(listed)) and set(listed) == attack_names - {"as_8_bit"}  # which attacks nothing
