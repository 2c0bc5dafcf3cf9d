"""Builds the `pipeline` and `transforms` packages; requirements*.txt pin what was tested."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Read `__version__` as text, so that building needs none of the dependencies."""
    source = (ROOT / "pipeline" / "_version.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise RuntimeError("pipeline/_version.py has no line `__version__ = ...`")


def read_readme() -> str:
    """Return README.md, or nothing where a build tree leaves it out."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


TEST = [
    "datasets>=5,<6",
    "duckdb>=1.5,<3",
    "hypothesis>=6.168,<7",
    "onnxruntime>=1.23,<2",
    "pandas>=2.3,<4",
    "polars>=2,<3",
    "pyspark>=4.2,<5",
    "pytest>=9,<10",
    "pytest-timeout>=2.4,<3",
    "pytest-xdist>=3.6,<4",
    "scikit-learn>=1.7,<2",
]

setup(
    name="experts-bert-embeddings",
    version=read_version(),
    description="An Apache Beam pipeline that embeds text corpora with TF-Hub BERT experts",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    # configs/ stays at the top of a checkout, where a user looks for it, and becomes
    # pipeline/configs/ in a wheel; pipeline/_bundled.py finds either.
    packages=[*find_packages(include=["pipeline*", "transforms*"]), "pipeline.configs"],
    package_dir={"pipeline.configs": "configs"},
    package_data={
        "pipeline": ["py.typed", "data/**/*"],
        "pipeline.configs": ["*.yaml", "*.jsonl"],
        "transforms": ["py.typed", "data/**/*"],
    },
    install_requires=[
        "apache-beam>=2.77,<3",
        "google-crc32c>=1.7,<2",
        "numpy>=2.1,<3",
        "orjson>=3.11,<4",
        "pyarrow>=25,<26",
        "PyYAML>=6,<7",
        "safetensors>=0.5,<1",
        "setuptools<81",  # tensorflow-hub 0.16.1 imports pkg_resources, gone from setuptools 82
        # An expert's vectors may move with TensorFlow's kernels, and tensorflow-text's ops
        # load into the TensorFlow they were built for only.
        "tensorflow>=2.21,<2.22",
        "tensorflow-hub>=0.16.1,<0.17",
        "tensorflow-text>=2.21,<2.22",
        "zstandard>=0.23,<1",
    ],
    # There is no extra for the demo expert: its wheel asks for sentence-transformers and so for
    # PyTorch, and the demo needs only its files. requirements-demo.txt says how it is installed.
    extras_require={
        "aws": ["apache-beam[aws]>=2.77,<3"],
        "gcp": ["apache-beam[gcp]>=2.77,<3"],
        "onnx": ["onnxruntime>=1.23,<2"],
        "test": TEST,
        "dev": [*TEST, "mypy>=2.4,<3", "ruff>=0.17,<0.18", "types-PyYAML>=6,<7"],
    },
    zip_safe=False,
)
