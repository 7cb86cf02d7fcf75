"""Tensors in files: where they are, what is read, what is written."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from gft_jax.config import ConfigError
from gft_jax.huggingface import tensor_files

A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = A.astype(ml_dtypes.bfloat16)


def write_shards(folder, files, places):
  for name, tensors in files.items():
    safetensors.numpy.save_file(tensors, folder / name)
  (folder / tensor_files.INDEX).write_text(json.dumps({'weight_map': places}))


def test_a_part_of_a_tensor(tmp_path):
  files = {'1.safetensors': {'a': A}, '2.safetensors': {'b': B}}
  write_shards(tmp_path, files, {'a': '1.safetensors', 'b': '2.safetensors'})
  stored = tensor_files.scan(tmp_path)
  assert stored['a'].shape == (3, 4) and stored['a'].dtype == 'F32'
  assert stored['b'].dtype == 'BF16'
  part = stored['a'].read([slice(1, 3), slice(0, 2)])
  np.testing.assert_array_equal(part, [[4, 5], [8, 9]])
  part = stored['b'].read([slice(None), slice(2, 3)])
  assert part.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(part, [[2], [6], [10]])


@pytest.mark.parametrize(
  'files, places, message',
  [
    ({}, {'a': '1.safetensors'}, 'has no 1.safetensors, which'),
    (
      {'1.safetensors': {'a': A}, '2.safetensors': {'b': B}},
      {'a': '2.safetensors', 'b': '1.safetensors'},
      'says that 2.safetensors has a, but it has not',
    ),
    (
      {'1.safetensors': {'a': A}},
      {'a': '1.safetensors', 'b': '1.safetensors'},
      'says that 1.safetensors has b, but it has not',
    ),
    (
      {'1.safetensors': {'a': A}, '2.safetensors': {'a': A, 'b': B}},
      {'a': '1.safetensors', 'b': '2.safetensors'},
      'the tensor a is in 2.safetensors and in another file',
    ),
    (
      {},
      {'a': '../1.safetensors'},
      "'../1.safetensors', which is not the name",
    ),
    ({}, {'a': '/etc/passwd'}, "'/etc/passwd', which is not the name"),
    ({}, {'a': None}, 'a is in None, which is not the name'),
    ({}, {}, 'has no weight_map'),
    ({}, None, 'has no weight_map'),
    ({}, ['a'], 'has no weight_map'),
  ],
)
def test_an_index_that_misleads(files, places, message, tmp_path):
  write_shards(tmp_path, files, places)
  with pytest.raises(ConfigError) as error:
    tensor_files.scan(tmp_path)
  assert message in str(error.value)


def test_pickles_are_named_and_not_opened(tmp_path):
  with pytest.raises(ConfigError, match=r'safetensors\.index\.json$'):
    tensor_files.scan(tmp_path)
  (tmp_path / 'pytorch_model.bin').write_bytes(b'cos\nsystem\n')
  with pytest.raises(ConfigError, match=r'only pytorch_model\.bin: nothing is'):
    tensor_files.scan(tmp_path)


def test_a_name_stands_twice_in_a_header(tmp_path):
  """safetensors refuses it, for one of them must be out of place."""
  entry = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
  header = b'{' + entry % (0, 4) + b',' + entry % (4, 8) + b'}'
  content = len(header).to_bytes(8, 'little') + header + b'\0' * 8
  (tmp_path / 'model.safetensors').write_bytes(content)
  with pytest.raises(ConfigError, match=r'not readable: .*invalid offset'):
    tensor_files.scan(tmp_path)


@pytest.mark.parametrize('size, files', [(10**9, 1), (72, 1), (71, 2), (1, 2)])
def test_files_up_to_a_size(size, files, tmp_path):
  """48 and 24 bytes; a tensor above the size has a file of its own."""
  tensors = {'a': A, 'b': B}
  tensor_files.write(tmp_path, tensors, tensors.get, size)
  assert len(list(tmp_path.glob('model*.safetensors'))) == files
  assert (tmp_path / tensor_files.INDEX).exists() == (files > 1)
  for name, stored in tensor_files.scan(tmp_path).items():
    read = stored.read([slice(None), slice(None)])
    assert read.dtype == tensors[name].dtype
    np.testing.assert_array_equal(read, tensors[name])


def test_earlier_weights_go_and_other_files_stay(tmp_path):
  for name in ('model-00001-of-00003.safetensors', 'model_mine.safetensors'):
    (tmp_path / name).write_bytes(b'')
  tensor_files.write(tmp_path, {'a': A}, {'a': A}.get, 10**9)
  assert {path.name for path in tmp_path.iterdir()} == {
    *('model.safetensors', 'model_mine.safetensors')
  }


@pytest.mark.parametrize(
  'text, size', [('5GB', 5 * 10**9), ('20kb', 20_000), ('7B', 7), ('1TB', 1e12)]
)
def test_sizes(text, size):
  assert tensor_files.bytes_of(text) == size


@pytest.mark.parametrize('text', ['', '5', 'GB', '0GB', '-5GB', '5 G', '1.5GB'])
def test_what_is_no_size(text):
  with pytest.raises(ConfigError, match='is not a size; right are 5GB'):
    tensor_files.bytes_of(text)


@pytest.mark.parametrize('mode', [0o755, 0o750, 0o700])
def test_whoever_reads_the_folder_may_read_the_weights(tmp_path, mode):
  folder = tmp_path / 'model'
  folder.mkdir()
  folder.chmod(mode)
  tensors = {'a': np.zeros((2, 3), np.float32), 'b': np.ones(4, np.float32)}
  tensor_files.write(folder, tensors, tensors.__getitem__, 10)
  written = [*folder.glob('*.safetensors')]
  assert len(written) == 2
  for path in written:
    assert path.stat().st_mode & 0o777 == mode & 0o666
