"""Trained models as other people get them: a folder with weights, a description and a card, loaded by name.

`load` finds a model, `Model` scores and certifies, `package` reads and writes the folders.
"""

from cprl_jax.deploy.model import Certified, Model
from cprl_jax.deploy.sources import SHIPPED, load

__all__ = ["SHIPPED", "Certified", "Model", "load"]
