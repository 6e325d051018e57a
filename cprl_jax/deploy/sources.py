"""Finding a model: one that comes with the package, a run's folder, a model's, or a name on Hugging Face."""

import os
import re
from pathlib import Path

import jax
import numpy as np

from cprl_jax.deploy import card, package
from cprl_jax.deploy.model import Model
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path

SHIPPED = ("robust", "plain")
_SHIPPED_FOLDER = Path(__file__).parents[1] / "shipped"
_WANTED = "give 'robust', 'plain', the folder of a run or of a model, or a Hugging Face name (user/repo)"


def load(source: str | os.PathLike, *, method: str = "", crops: int = 0) -> Model:
    """Loads a trained model.

    A text that is 'robust' or 'plain' means the model that comes with the package, whatever lies in the current folder:
    a folder of that name is './robust', or a `pathlib.Path`. Another text is a folder if there is one, and else a name
    on Hugging Face, from which the weights, config.json and the card are downloaded and nothing else.

    Args:
      source: 'robust'; 'plain'; the folder (--workdir) of a run of `cprl_jax.main` whose training is done; a folder
        that `Model.save` or `cprl_jax.export` wrote; or 'user/repo'.
      method: which model of a run; '' = cprl where it was trained, else the last method. In a run of Causal-IQA, one of
        its updates, or 'cis/seed-3' ('' = the last update; without a seed, the first).
      crops: crops per image; 0 = as in the run's evaluation.

    Raises:
      UserError: nothing there, files that are damaged or of a later version (named), or no such method.
    """
    if crops < 0:
        raise UserError(f"crops={crops} is not allowed; it is 1 or larger, or 0: as in the run's evaluation")
    folder, name = _folder(source), str(source)
    if package.is_package(folder):
        content = package.read(folder)
        if method and method != content.method:
            raise UserError(f"{name} is a model of {content.method}, not of {method}; leave the method out")

        def text() -> str:
            return _read_card(folder / package.CARD)

    else:
        content = _of_run(folder, method)

        def text() -> str:
            return card.of_run(content.config, content.method, folder)

    before = content.config.evaluation.crops
    if not crops or crops == before:
        return Model(content, name=name, card=text)
    content.config.evaluation.crops = crops
    change = f"a score is the mean of crops at {crops} places of an image, and was that at {before}"
    return Model(content, name=name, card=lambda: card.amended(text(), change))


def _of_run(run: Path, method: str) -> package.Package:
    from cprl_jax.config.defaults import method_of, read_config
    from cprl_jax.training.setup import network_method, trained_model

    config = read_config(run)
    method = method_of(config, method, run)
    module, variables = trained_model(config, method, run)
    variables = jax.tree.map(np.asarray, variables)  # as those of a package are: the same compiled code
    return package.Package(config, method, network_method(config, method), module, variables, "float32")


def _folder(source: str | os.PathLike) -> Path:
    if isinstance(source, str) and source in SHIPPED:
        folder = _SHIPPED_FOLDER / source
        if not (folder / package.WEIGHTS).is_file():
            raise UserError(
                f"the model {source!r} is not in this installation ({folder} has no {package.WEIGHTS}); make it with "
                "`make weights DATA=DIR`, or name another: the folder of a run or of a model, or a Hugging Face name"
            )
        return folder
    folder = user_path(source, field="the model")
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{source} is a file; {_WANTED}")
    # As for weights: where the part before the stroke is a folder, a path was meant.
    is_name = isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and source.partition("/")[0] != "."
    if not is_name or os.path.isdir(source.partition("/")[0]):
        raise UserError(f"{source} is not there; {_WANTED}")
    return _download(source)


def _download(name: str) -> Path:
    import huggingface_hub  # here: slow to import, and rarely needed

    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(package.FILES)))
    except Exception as error:  # of the connection, the service, the name, the cache: the library has no common class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} is no folder here, and could not be had from Hugging Face ({reason})") from error
    if not package.is_package(folder):
        raise UserError(f"{name} on Hugging Face is no model of cprl_jax: it has no {package.WEIGHTS}")
    return folder


def _read_card(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}, the model's card, cannot be read ({error.strerror}); get the model again") from None
