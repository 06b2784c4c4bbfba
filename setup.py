"""Metadata of the distribution ``ppo-lm``: the wheel holds the package ``ppo`` alone.

All other packages (rewards/, models/, data/, eval/, unlearning/, benchmarks/) are used from a checkout. They are not
installed, because other projects have folders of the same names.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1] for line in (HERE / "ppo/__init__.py").read_text("utf-8").splitlines() if "__version__ =" in line
)

setup(
    name="ppo-lm",
    version=VERSION,
    description="PPO for language models in pure PyTorch, and the reference implementation of DeMem",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["ppo", "ppo.*"]),
    package_data={"ppo": ["py.typed"]},
    # Lower bounds are what was tried: constraints-oldest.txt holds them, docs/install.md the run.
    install_requires=["torch>=2.8", "transformers>=5.0", "numpy>=1.26", "sacrebleu>=2.4", "tqdm>=4.66"],
    extras_require={
        "gguf": ["gguf>=0.17", "accelerate>=1.4"],
        "plots": ["matplotlib>=3.8"],
        "tensorboard": ["tensorboard>=2.14"],
        "harness": ["lm-eval>=0.4.9"],
        "trackers": ["wandb>=0.31", "trackio>=0.43", "mlflow-skinny>=3.17"],
        "peft": ["peft>=0.18"],
        "parquet": ["pyarrow>=18"],
        "pii": ["phonenumbers>=8.13"],
        "bench": ["trl==1.12.0", "datasets>=4.7"],
        "test": ["pytest>=8", "pytest-cov>=5", "hypothesis>=6.100", "setuptools>=77"],
        "dev": ["ruff>=0.9", "mypy>=1.13", "coverage>=7.6", "peft>=0.18", "tensorboard>=2.14"],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
