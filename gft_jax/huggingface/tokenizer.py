"""The tokenizer of a folder: what it must have, and what stops."""

import pathlib
import shutil

import transformers

from gft_jax.config import ConfigError, require, template_arguments
from gft_jax.huggingface import hub
from gft_jax.huggingface.chat_template import turn_end
from gft_jax.huggingface.json_files import read_json, write_json

TOKEN_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')
FILES = ('tokenizer.json', 'tokenizer.model', 'vocab.json')


def load_tokenizer(
  directory: str | pathlib.Path,
) -> transformers.PreTrainedTokenizerBase:
  """Reads the tokenizer of a folder or a hub id.

  A tokenizer.json is taken as it is. AutoTokenizer would put its vocabulary
  into the class that config.json suggests: a word-level one under
  model_type=qwen2 then gives no ids at all (transformers 5.23).

  No padding token is needed, and it may be the EOS: lengths are carried
  everywhere, and no id is ever taken for padding.

  Raises:
    ConfigError: no tokenizer, a broken one, or one without EOS.
  """
  directory = hub.folder_of(directory, weights=False)
  present = [name for name in FILES if (directory / name).is_file()]
  require(bool(present), f'{directory} has no tokenizer ({", ".join(FILES)})')
  path = directory / 'tokenizer_config.json'
  settings = read_json(path) if path.is_file() else {}
  kind = transformers.AutoTokenizer
  if FILES[0] in present:
    kind = transformers.PreTrainedTokenizerFast
  try:
    tokenizer = kind.from_pretrained(
      directory, local_files_only=True, trust_remote_code=False
    )
  except Exception as error:  # Their parser raises no other kind.
    raise ConfigError(
      f'{directory}: transformers cannot read the tokenizer ({present[0]}):'
      f' {" ".join(str(error).split())}'
    ) from error
  assert isinstance(tokenizer, transformers.PreTrainedTokenizerBase)
  if settings.get('add_bos_token') and tokenizer.bos_token is not None:
    # DeepSeek's tokenizers say it here alone (swift-transformers issue 161),
    # where transformers 5 does not heed it.
    # pyrefly: ignore[missing-attribute]  # Some of its tokenizers have it.
    tokenizer.add_bos_token = True
  require(
    tokenizer.eos_token_id is not None,
    f'{directory}: the tokenizer has no EOS, so no response could end; set'
    ' eos_token in tokenizer_config.json',
  )
  return tokenizer


def save_tokenizer(
  directory: pathlib.Path,
  tokenizer: transformers.PreTrainedTokenizerBase,
  source: pathlib.Path | None,
) -> None:
  """Writes the tokenizer and its chat template.

  Those of `source` are copied byte for byte: every version of transformers
  that read them there reads them here.
  """
  for earlier in _files_of(directory):
    earlier.unlink()
  if source is None:
    tokenizer.save_pretrained(directory)
    return
  for path in _files_of(source):
    shutil.copyfile(path, directory / path.name)


def keep_arguments(
  directory: pathlib.Path, arguments: str, system: str = ''
) -> None:
  """Makes settings of a run the defaults of a folder's chat template.

  Whoever uses the folder then asks as the run did, and may say otherwise.

  Args:
    directory: the folder.
    arguments: `data.template_args`.
    system: `data.system`.
  """
  head = ''.join(
    f'{{%- if {name} is not defined -%}}{{%- set {name} = {value!r} -%}}'
    '{%- endif -%}'
    for name, value in template_arguments(arguments).items()
  )
  if system:
    turn = {'role': 'system', 'content': system}
    head += (
      "{%- if messages[0]['role'] not in ['system', 'developer'] -%}"
      f'{{%- set messages = [{turn!r}] + messages -%}}{{%- endif -%}}'
    )
  if not head:
    return
  for path in directory.glob('chat_template*.jinja'):
    path.write_text(head + path.read_text(encoding='utf-8'), encoding='utf-8')
  for name in ('tokenizer_config.json', 'chat_template.json'):
    path = directory / name
    settings = read_json(path) if path.is_file() else {}
    template = settings.get('chat_template')
    if isinstance(template, str):
      settings['chat_template'] = head + template
    elif isinstance(template, list):  # Several, by name.
      settings['chat_template'] = [
        {**one, 'template': head + one['template']} for one in template
      ]
    else:
      continue
    write_json(path, settings)


def _files_of(directory: pathlib.Path) -> set[pathlib.Path]:
  found = (p for pattern in hub.TOKENIZER for p in directory.glob(pattern))
  return {path for path in found if path.is_file()}


def check_vocabulary(
  directory: pathlib.Path,
  tokenizer: transformers.PreTrainedTokenizerBase,
  vocab_size: int,
) -> None:
  """Raises ConfigError where a token has no row in the embedding."""
  ids = tokenizer.get_vocab()
  last = max(ids, key=ids.__getitem__)
  require(
    ids[last] < vocab_size,
    f'{directory}: the tokenizer has {last!r} with id {ids[last]}, but'
    f' config.json says vocab_size={vocab_size}; its last id must be'
    f' {vocab_size - 1}',
  )


def read_generation(directory: pathlib.Path) -> dict[str, object]:
  """generation_config.json, or in its place the ids that config.json has."""
  path = directory / 'generation_config.json'
  if path.is_file():
    return read_json(path)
  config = read_json(directory / 'config.json')
  return {name: config[name] for name in TOKEN_IDS if name in config}


def end_ids(
  tokenizer: transformers.PreTrainedTokenizerBase,
) -> tuple[int, ...]:
  """The tokenizer's EOS, and what ends a turn in its chat template."""
  ids = (tokenizer.eos_token_id, turn_end(tokenizer))
  return tuple(dict.fromkeys(i for i in ids if i is not None))


def stop_ids(
  directory: pathlib.Path,
  tokenizer: transformers.PreTrainedTokenizerBase,
  vocab_size: int,
) -> tuple[int, ...]:
  """Every token that ends an answer of the model of a folder.

  Those of `end_ids` come first, for the answers that are trained on end so. The
  others are those of `read_generation`.

  Raises:
    ConfigError: one that is no token.
  """
  named = read_generation(directory).get('eos_token_id')
  ids = named if isinstance(named, list) else [named] * (named is not None)
  for stop in ids:
    require(
      type(stop) is int and 0 <= stop < vocab_size,
      f'{directory}: eos_token_id={named!r} of generation_config.json or'
      f' config.json is not an id below vocab_size={vocab_size}',
    )
  return tuple(dict.fromkeys((*end_ids(tokenizer), *ids)))
