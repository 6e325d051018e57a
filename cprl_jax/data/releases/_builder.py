"""The TFDS builder of the releases. Its packages take time to import and are not made for every system."""

import functools
from pathlib import Path
from typing import ClassVar

import array_record.python.array_record_module  # noqa: F401 - TFDS would miss it only when it writes
import numpy as np
import tensorflow_datasets as tfds

from cprl_jax.data.releases import _common, build


class QualityBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder that all releases share: `train`, all rated images, and `references`, the undistorted photographs.

    `build.builder_of` makes the subclass of a release. The split `references` is absent where there are none; its
    examples have a name (the scene) and no labels. `build.load` is the way in: it names the build by the release's
    content and picks the file format. Used directly, `file_format='array_record'` must be given wherever TensorFlow is
    not installed, and the release is read with its default options.
    """

    VERSION = tfds.core.Version(build.VERSION)
    RELEASE_NOTES = {"2.0.0": "One schema for all datasets.", "1.0.0": "LIVE-C alone."}
    release: ClassVar[_common.Release]

    contents: _common.Contents | None = None  # set by `build.load`, which has checked them

    @property
    def MANUAL_DOWNLOAD_INSTRUCTIONS(self) -> str:  # noqa: N802 - TFDS's name
        return f"Get {self.release.FOLDERS[0]} from {self.release.URL} and {self.release.HOW_TO_UNPACK}."

    @classmethod
    def named(cls, name: str, *, data_dir: Path) -> "QualityBuilder":
        """The builder of one build."""
        config = tfds.core.BuilderConfig(name=name, version=cls.VERSION)
        return cls(config=config, data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.release.TITLE}: images with quality labels.",
            homepage=self.release.URL,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "name": tfds.features.Text(),
                    "row": np.int32,
                    "mos": np.float32,
                    "mos_raw": np.float32,
                    "mos_std": np.float32,
                    "reference": tfds.features.Text(),
                    "distortion": tfds.features.Text(),
                    "level": np.int32,
                    "part": tfds.features.Text(),
                }
            ),
            citation=self.release.CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        contents = self.contents
        if contents is None:
            folder = build.find_release(self.release, dl_manager.manual_dir)
            contents = self.release.read(folder)
            duplicates = build._duplicates(self.release, contents, _common.digests(build._paths(contents)))
            build._refuse(self.release, folder, contents.problems + duplicates + _common.unreadable(contents))
        splits = {"train": self._generate_examples(contents.records)}
        if contents.pristine:
            splits[build._PRISTINE] = self._generate_examples(build._pristine_records(contents))
        return splits

    def _generate_examples(self, records: tuple[_common.Record, ...]):
        for record in records:
            columns = {key: getattr(record, key) for key in self.info.features if key != "image"}
            yield record.row, {"image": record.path} | columns


@functools.cache
def of(release: _common.Release) -> type[QualityBuilder]:
    """The TFDS builder of a release, which its module describes."""
    return type(release.BUILDER, (QualityBuilder,), {"__doc__": f"{release.TITLE}.", "release": release})
