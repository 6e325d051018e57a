"""A trained model as a person uses it: scores of images and files, a function to attack, certificates, a card."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from cprl_jax import models
from cprl_jax.attacks.arguments import check_number
from cprl_jax.attacks.loop import evaluate
from cprl_jax.data import combined, crops, photographs
from cprl_jax.deploy import card as card_lib
from cprl_jax.deploy import package, tensors
from cprl_jax.evaluation.files import FileScorer
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path

Paths = str | os.PathLike | Sequence[str | os.PathLike]
ScoreFn = Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]]


class Certified(NamedTuple):
    """Smoothed scores, and how far any change of the images inside the radius can move them.

    Attributes:
      score: the median score under noise.
      lower, upper: with the stated confidence, no image within the radius has a median outside of them; infinite where
        the samples cannot tell.
      largest_radius: up to which these samples give finite bounds.
    """

    score: Float[np.ndarray, " images"]
    lower: Float[np.ndarray, " images"]
    upper: Float[np.ndarray, " images"]
    largest_radius: Float[np.ndarray, " images"]


class Model:
    """A trained model. `cprl_jax.load` makes it.

    A score is the mean over crops at the places that a seed and the image's size determine, after the resizing of the
    run, if it did. Scores are on 0..100, higher is better.

    Args:
      content: network, variables and settings.
      name: what it is called in messages.
      card: makes the text of its card; raises UserError if it has none.

    Attributes:
      name: as above.
      method: what trained it.
      dtype: in which its weights were kept; it computes in float32.
      module, variables: of the network, for `cprl_jax.models`, whose functions take crops.
      config: its configuration.
    """

    def __init__(self, content: package.Package, *, name: str, card: Callable[[], str]):
        self.name, self.method, self.dtype = name, content.method, content.dtype
        self.module, self.variables, self.config = content.module, content.variables, content.config
        self._content, self._card = content, card

    def __repr__(self) -> str:
        network = models.network_of(self.config.model).described(self.config.model.backbone)
        return f"Model({self.name!r}: {network}, {self.method}, {self.dtype})"

    @property
    def card(self) -> str:
        """The model card, Markdown. Raises UserError if there is none."""
        return self._card()

    @functools.cached_property
    def score_fn(self) -> ScoreFn:
        """The score as a function that JAX can trace: RGB images [B, H, W, 3] in [0, 1], of any size, to [B].

        Gradients reach every pixel that some crop shows. Where the run resized its images, so does this, but without
        the rounding to 8 bits of files.
        """
        return _of_images(self._network, self._view)

    def __call__(self, images: Shaped[np.ndarray, "batch height width 3"]) -> Float[np.ndarray, " batch"]:
        """Scores of images of one size: uint8, or floating-point numbers in [0, 1].

        Raises:
          ValueError: another shape or type, or values outside [0, 1].
        """
        images = _checked(images)
        count, shown = len(images), max(1, self.config.evaluation.batch_size // self._view.crops)
        scores = np.empty(count, np.float32)
        for start in range(0, count, shown):
            rows = np.minimum(np.arange(start, start + min(shown, count)), count - 1)  # one shape for all batches
            batch = images[rows] / np.float32(255) if images.dtype == np.uint8 else images[rows].astype(np.float32)
            part = np.asarray(evaluate(self.score_fn, batch))
            scores[start : start + shown] = part[: count - start]
        return scores

    def scorer(self) -> FileScorer:
        """Scores of files one after the other: see `evaluation.files.FileScorer`."""
        view = self._view
        return FileScorer(
            self.module,
            self.variables,
            crops=view.crops,
            crop_size=view.size,
            seed=view.seed,
            batch_size=self.config.evaluation.batch_size,
            resize=view.resize,
        )

    def score(self, paths: Paths) -> Float[np.ndarray, " files"]:
        """Scores of image files (JPEG, PNG, BMP, WebP or TIFF), upright as a viewer shows them.

        Raises:
          UserError: a file that cannot be read or is no image (the first such one is named).
        """
        return self._scorer(_list(paths))

    _scorer = functools.cached_property(scorer)

    def certify(
        self,
        images: Paths | Shaped[np.ndarray, "batch height width 3"],
        *,
        radius: float = 0.05,
        sigma: float = 0.12,
        samples: int = 1000,
        key: Key[Array, ""] | None = None,
        confidence: float = 0.999,
    ) -> Certified:
        """The median score under noise, and an interval that no change within the radius can leave.

        Noise is added to the pixels that the crops show, once to each. Where the run resized its images, the radius is
        that of a change of the resized image.

        Args:
          images: files, or images as for a call.
          radius: l2 norm of a change, of pixels in [0, 1]. One grey level everywhere in 224x224 pixels is 1.5.
          sigma: standard deviation of the noise.
          samples: noisy copies of each image.
          key: of the noise, the same for each image: what is certified depends on the image alone.
          confidence: of the interval of an image.

        Raises:
          UserError: a file that cannot be read.
          ValueError: an option out of range.
        """
        entries = _checked(images) if _is_array(images) else _list(images)
        options = dict(radius=radius, sigma=sigma, samples=samples, key=key, confidence=confidence)
        results = []
        for result in self.certify_each(entries, **options):
            if isinstance(result, UserError):
                raise result
            results.append(result)
        columns = zip(*results, strict=True) if results else [()] * len(Certified._fields)
        return Certified(*(np.array(column, np.float32) for column in columns))

    def certify_each(self, entries: Sequence, *, key: Key[Array, ""] | None = None, radius: float, **options):
        """As `certify`, for one file or image after the other: a Certified of single numbers, or a UserError."""
        from cprl_jax.robustness.certify import NotFiniteError, median_smoothing

        radius, key = check_number("radius", radius), jax.random.key(0) if key is None else key
        for entry in entries:
            try:
                image = _checked(entry[None])[0] if _is_array(entry) else photographs.read(entry)
            except UserError as error:
                yield error
                continue
            score_fn, pixels = self._of_pixels(image)
            batch_size = max(1, self.config.evaluation.batch_size // self._view.crops)
            try:
                smoothed = median_smoothing(score_fn, pixels[None, :, None], key=key, batch_size=batch_size, **options)
            except NotFiniteError:
                what = "an image" if _is_array(entry) else entry
                yield UserError(f"{what} has no certificate: not all its scores under noise are finite numbers")
                continue
            numbers = (smoothed.score, *smoothed.bounds(radius), smoothed.largest_radius)
            yield Certified(*(float(np.asarray(number).reshape(())) for number in numbers))

    def rounded(self, dtype: str) -> "Model":
        """The model with its weights as they come back from a file in 'float32', 'bfloat16' or 'int8'.

        Raises:
          ValueError: another dtype.
        """
        variables = tensors.decode(tensors.encode(self.variables, dtype), self.variables)
        content = self._content._replace(dtype=dtype, variables=variables)
        return Model(content, name=self.name, card=lambda: self._card_in(dtype))

    def _card_in(self, dtype: str) -> str:
        """The card of a copy with its weights in another dtype."""
        if dtype == self.dtype:
            return self.card
        return card_lib.amended(self.card, f"the weights are kept in {dtype}, and were in {self.dtype}")

    def save(self, folder: str | os.PathLike, *, dtype: str = "", card: str = "") -> None:
        """Writes a folder that `cprl_jax.load` reads, whole or not at all, over an older one of the same kind.

        Args:
          folder: made if it is missing.
          dtype: of the weights, 'float32', 'bfloat16' or 'int8'; '' = as they were kept, so that nothing is lost.
          card: its text; '' = this model's.

        Raises:
          UserError: the folder holds something else.
          ValueError: another dtype.
        """
        content = self._content._replace(dtype=dtype or self.dtype)
        text = card or self._card_in(content.dtype)
        package.write(user_path(folder, field="the folder of the model"), content, text)

    def push_to_hub(self, repo: str, *, dtype: str = "", private: bool = False) -> str:
        """Uploads the folder of `save` to 'user/repo' on Hugging Face, made if it is missing; returns its address.

        Raises:
          UserError: the model has no card, or Hugging Face refuses (`hf auth login` first).
        """
        import tempfile

        import huggingface_hub

        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save(folder, dtype=dtype)
            try:
                hub = huggingface_hub.HfApi()
                address = hub.create_repo(repo, private=private, exist_ok=True)
                hub.upload_folder(
                    repo_id=repo, folder_path=folder, commit_message=f"{self.method}, {dtype or self.dtype}"
                )
            except Exception as error:  # of the connection, the name, the token: the library has no common class
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UserError(f"{repo} could not be written on Hugging Face: {reason}") from error
        return str(address)

    @functools.cached_property
    def _network(self) -> jax.tree_util.Partial:
        """The score of a crop."""
        return models.score_fn(self.module, jax.tree.map(jnp.asarray, self.variables))

    @property
    def _view(self) -> "_View":
        config = self.config
        return _View(config.evaluation.crops, config.evaluation.crop_size, config.seed, config.dataset.resize)

    def _of_pixels(self, image: Shaped[np.ndarray, "height width 3"]) -> tuple[ScoreFn, Float[np.ndarray, "shown 3"]]:
        """The score as a function of the pixels that crops show, as images [B, shown, 1, 3]; and those of an image.

        They are followed by black ones, up to a power of two.
        """
        view = self._view
        if view.resize:
            if image.dtype == np.uint8:
                image = combined.resized(np.asarray(image), view.resize)
            else:
                image = np.asarray(_resized(jnp.asarray(image)[None], view.resize)[0])
        numbers, counts = view.pixels(image.shape)
        shown, places = np.unique(numbers, return_inverse=True)
        # Few shapes to compile for, whatever the size of the image; what no crop shows changes no score.
        unused = (1 << (len(shown) - 1).bit_length()) - len(shown)
        pixels = np.pad(np.asarray(image).reshape(-1, 3)[shown], ((0, unused), (0, 0)))
        pixels = pixels / np.float32(255) if pixels.dtype == np.uint8 else pixels.astype(np.float32)
        places = places.reshape(numbers.shape).astype(np.int32)
        return jax.tree_util.Partial(_mean_over_crops, self._network, places, counts), pixels


class _View(NamedTuple):
    """What of an image a model looks at."""

    crops: int
    size: int
    seed: int
    resize: int

    def pixels(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """`data.crops.pixels` of an image of this shape."""
        return crops.pixels(crops.points(self.crops, self.seed), shape, self.size)


@functools.cache
def _scores_of_images(view: _View):
    def score(network, images):
        if view.resize:
            images = _resized(images, view.resize)
        return _mean_over_crops(network, *view.pixels(images.shape[1:]), images)

    return score


def _of_images(network: jax.tree_util.Partial, view: _View) -> jax.tree_util.Partial:
    return jax.tree_util.Partial(_scores_of_images(view), network)


def _mean_over_crops(network, places, counts, images):
    """Scores of images: the mean over the crops that are at so many places, `counts` at each."""
    batch = images.shape[0]
    shown = images.reshape(batch, -1, 3)[:, places]  # [batch, places, size, size, 3]
    scores = network(shown.reshape(-1, *shown.shape[2:])).reshape(batch, -1)
    weights = jnp.asarray(counts, scores.dtype)
    return (scores * weights[None]).sum(axis=1) / weights.sum()


def _resized(images, size: int):
    return jax.image.resize(images, (images.shape[0], size, size, 3), "bilinear", antialias=True)


def _list(paths: Paths) -> list:
    return [paths] if isinstance(paths, str | bytes | os.PathLike) else list(paths)


def _is_array(images) -> bool:
    """Whether these are numbers, rather than names of files."""
    return hasattr(images, "dtype") and images.dtype.kind not in "USO"


def _checked(images) -> np.ndarray:
    """Images as they came; raises ValueError for another shape, type or range."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"images have the shape {images.shape}; it must be [batch, height, width, 3]")
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype}; they must be uint8, or floating-point numbers in [0, 1]")
    if images.dtype != np.uint8 and images.size and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"images have values from {images.min():g} to {images.max():g}; they must be in [0, 1]")
    return images
