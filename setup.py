"""Ranges for users; requirements.txt pins what was tested."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
  r"__version__ = '(.+)'", (HERE / 'gft_jax/__init__.py').read_text()
).group(1)

setuptools.setup(
  name='gft_jax',
  version=VERSION,
  description='Group Fine-Tuning of language models in JAX and Flax',
  long_description=(HERE / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(include=['gft_jax', 'gft_jax.*']),
  package_data={'gft_jax': ['py.typed']},
  install_requires=[
    'array-record>=0.8',
    'chex>=0.1.91',
    'flax>=0.12,<0.13',
    'grain>=0.2.16',
    'huggingface-hub>=1.31,<3',
    'jax>=0.10.2,<0.11',
    'jaxtyping>=0.3.11',
    'jinja2>=3.1',
    'latex2sympy2-extended>=1.11,<2',
    'math-verify>=0.9,<0.10',
    'matplotlib>=3.10',
    'numpy>=2.0',
    'optax>=0.2.6',
    'orbax-checkpoint>=0.12.8,<0.13',
    'pyarrow>=20',
    'safetensors>=0.6',
    'sympy>=1.13',
    'tensorboardX>=2.6',
    'tensorflow-datasets>=4.9.9',
    'tensorstore>=0.1.80',
    'tokenizers>=0.22',
    'tqdm>=4.66',
    'transformers>=5.0,<6',
  ],
  extras_require={
    'tpu': ['jax[tpu]>=0.10.2,<0.11'],
    'cuda': ['jax[cuda13]>=0.10.2,<0.11'],
    # PyTorch is the reference that parity tests compare with; nothing else.
    'test': [
      'beartype==0.23.1',
      'gguf==0.19.0',
      'peft==0.21.2',
      'pyrefly==1.5.0',
      'pytest==9.2.0',
      'pytest-timeout==2.4.0',
      'pytest-xdist==3.8.0',
      'reasoning-gym==0.1.25',
      'ruff==0.17.6',
      'torch==2.13.0',
    ],
  },
)
