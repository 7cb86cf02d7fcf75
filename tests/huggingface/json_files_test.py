"""JSON that is one object, once each key, or one line."""

import pytest

from gft_jax.config import ConfigError
from gft_jax.huggingface.json_files import read_json, write_json


def test_what_is_written_is_read(tmp_path):
  values = {'a': [1, 2.5, None], 'é': {'b': '\n'}}
  write_json(tmp_path / 'x.json', values)
  assert read_json(tmp_path / 'x.json') == values


@pytest.mark.parametrize(
  'content, message',
  [
    (b'', 'x.json is not JSON: Expecting value'),
    (b'{"a": 1', 'x.json is not JSON: Expecting'),
    (b'{"a": 1}}', 'x.json is not JSON: Extra data'),
    (b'{"a": "\xff"}', "x.json is not JSON: 'utf-8' codec"),
    (b'\xef\xbb\xbf{}', 'x.json is not JSON: Unexpected UTF-8 BOM'),
    (b'{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' stands twice"),
    (b'[1]', 'is JSON, but not an object'),
    (b'null', 'is JSON, but not an object'),
    (b'{"a":' * 100_000, 'x.json is not JSON: maximum recursion'),
    (b'{"a": 1' + b'0' * 5000 + b'}', 'x.json is not JSON: Exceeds'),
  ],
)
def test_mistakes(content, message, tmp_path):
  (tmp_path / 'x.json').write_bytes(content)
  with pytest.raises(ConfigError) as error:
    read_json(tmp_path / 'x.json')
  assert message in str(error.value) and '\n' not in str(error.value)


def test_no_file(tmp_path):
  with pytest.raises(ConfigError, match=r'has no x\.json'):
    read_json(tmp_path / 'x.json')
