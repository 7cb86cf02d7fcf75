"""The tokenizer of a folder: what it must have, what stops, how it is asked."""

import pathlib
import shutil

import jinja2
import transformers

from gft_jax.config import ConfigError, require
from gft_jax.huggingface import hub
from gft_jax.huggingface.json_files import read_json

TOKEN_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')
FILES = ('tokenizer.json', 'tokenizer.model', 'vocab.json')

Conversation = list[dict[str, str]]
# Templates that write today's date would ask another prompt tomorrow; this is
# the day that those of Llama 3 name where they are told none.
DAY = {'date_string': '26 Jul 2024'}
# An answer that no template writes of itself.
WORDS = 'gft_jax: the words of the assistant'


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


def stop_ids(
  directory: pathlib.Path,
  tokenizer: transformers.PreTrainedTokenizerBase,
  vocab_size: int,
) -> tuple[int, ...]:
  """Every token that ends an answer of the model of a folder.

  The tokenizer's EOS comes first: it ends the answers that are trained on. The
  others are those of `read_generation`; a chat model often has two, the end of
  a turn and the end of a text.

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
  return tuple(dict.fromkeys((tokenizer.eos_token_id, *ids)))


def chat_prompts(
  conversations: list[Conversation],
  tokenizer: transformers.PreTrainedTokenizerBase,
) -> list[str]:
  """Conversations in the chat template, up to the assistant's next words.

  The texts have the BOS that the template writes: encode them without special
  tokens.

  Raises:
    ConfigError: the template fails, or has no place for an answer.
  """
  call = missing_call(tokenizer)
  return [
    text + call
    for text in _render(conversations, tokenizer, add_generation_prompt=True)
  ]


def missing_call(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
  """What a template that ignores `add_generation_prompt` leaves out.

  Without it the model would go on with the user's turn. It is what the
  template writes between that and an assistant's words. Space alone is not
  wanted: then the user's turn itself ends with the call, as in Llama 2.
  """
  asked = {'role': 'user', 'content': 'What is 1 + 1?'}
  said = {'role': 'assistant', 'content': WORDS}
  (turn,) = _render([[asked]], tokenizer)
  if _render([[asked]], tokenizer, add_generation_prompt=True) != [turn]:
    return ''
  (both,) = _render([[asked, said]], tokenizer)
  require(
    both.startswith(turn) and WORDS in both,
    f'the chat template of {_name(tokenizer)} ignores add_generation_prompt,'
    " and does not write an assistant's words after the user's; use"
    ' data.template=plain',
  )
  call = both[len(turn) : both.index(WORDS)]
  return call if call.strip() else ''


def _render(
  conversations: list[Conversation],
  tokenizer: transformers.PreTrainedTokenizerBase,
  **settings,
) -> list[str]:
  try:
    texts = tokenizer.apply_chat_template(
      conversations, tokenize=False, **DAY, **settings
    )
  except (jinja2.TemplateError, TypeError, ValueError) as error:
    reason = ' '.join(str(error).split())
    raise ConfigError(
      f'the chat template of {_name(tokenizer)} fails: {reason}; use'
      ' data.template=plain, or mend it'
    ) from error
  assert isinstance(texts, list)  # Tokens where they are asked for.
  return [str(text) for text in texts]


def _name(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
  return tokenizer.name_or_path or 'the tokenizer'
